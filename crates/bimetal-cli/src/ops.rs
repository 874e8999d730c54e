//! `bimetal ops`: the registry.

use crate::{select, text};
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Operations or domains, or parts of their names
    filter: Vec<String>,
    /// Print JSON: an array of {name, domain, dtypes, backends, doc}
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listed {
    name: &'static str,
    domain: &'static str,
    dtypes: Vec<&'static str>,
    backends: &'static [&'static str],
    doc: &'static str,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let listed: Vec<Listed> = select::ops(&args.filter)?
        .into_iter()
        .map(|(domain, op)| Listed {
            name: op.name(),
            domain: domain.name,
            dtypes: op.dtypes().iter().map(|d| d.name()).collect(),
            backends: op.backends(),
            doc: op.doc(),
        })
        .collect();
    if args.json {
        text::print_json(&listed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = text::table(&["domain", "operation", "dtypes", "backends", ""]);
    for op in &listed {
        table.add_row([op.domain, op.name, &op.dtypes.join(" "), &op.backends.join(" "), op.doc]);
    }
    text::print(&format!("{table}\n{} operations", listed.len()))?;
    Ok(ExitCode::SUCCESS)
}
