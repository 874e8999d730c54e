//! `report.md`.

use super::{LEGEND, Report, cells, row_notes, summary_lines};

pub fn page(report: &Report) -> String {
    let mut out = String::from("# bimetal bench\n\n");
    out += &format!("{}\n\n", report.tally());
    out += "| | |\n|---|---|\n";
    for (name, value) in &report.machine.lines {
        out += &line(&[name.clone(), value.clone()]);
    }
    let summaries = summary_lines(report);
    if !summaries.is_empty() {
        out += "\n## Against the peers\n\n";
        summaries.iter().for_each(|s| out += &format!("- {}\n", cell(s)));
    }
    for domain in report.domains() {
        let cells = cells(report, domain);
        out += &format!("\n## {domain}\n\n");
        out += &line(&cells.header);
        out += &format!("|{}\n", "---|".repeat(cells.header.len()));
        cells.rows.iter().for_each(|row| out += &line(row));
    }
    out += &format!("\n{LEGEND}\n");
    let notes: Vec<String> = report.notes.iter().cloned().chain(row_notes(report)).collect();
    if !notes.is_empty() {
        out += "\n## Notes\n\n";
        notes.iter().for_each(|note| out += &format!("- {}\n", cell(note)));
    }
    out
}

fn line(cells: &[String]) -> String {
    let escaped: Vec<String> = cells.iter().map(|c| cell(c)).collect();
    format!("| {} |\n", escaped.join(" | "))
}

/// Text that stays in its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;

    #[test]
    fn every_row_has_the_columns_of_its_header() {
        let page = super::page(&sample());
        let table: Vec<&str> = page.lines().skip_while(|l| !l.starts_with("## elementwise")).skip(2).collect();
        let columns = table[0].matches('|').count();
        let rows: Vec<_> = table.iter().take_while(|l| l.starts_with('|')).collect();
        assert_eq!(rows.len(), 6);
        assert!(rows.iter().all(|r| r.matches('|').count() == columns), "{page}");
    }
}
