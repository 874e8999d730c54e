//! `report.html`: one file with everything in it, readable without a network.

use super::svg::escape;
use super::{LEGEND, Report, cells, plots, row_notes, summary_lines};

const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#222;background:#fff}
h1,h2{font-weight:600;line-height:1.2}h2{margin-top:2em;border-bottom:1px solid #ddd;padding-bottom:.2em}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
td,th{padding:.15em .7em .15em 0;text-align:left;white-space:nowrap}th{border-bottom:1px solid #999}
tr:hover td{background:#f4f7fa}.wide{overflow-x:auto}svg text{font:11px system-ui,sans-serif;fill:#444}
figure{margin:0;display:inline-block}figcaption{font-weight:600}.wrong td{color:#b00020}.muted{color:#666}
";

pub fn page(report: &Report) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>bimetal bench</title><style>{STYLE}</style></head><body>\n\
         <h1>bimetal bench</h1>\n<p>{}</p>\n<table>",
        escape(&report.tally())
    );
    for (name, value) in &report.machine.lines {
        out += &format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(name), escape(value));
    }
    out += "</table>\n";
    let summaries = summary_lines(report);
    if !summaries.is_empty() {
        out += &format!("<h2>Against the peers</h2>\n{}", list(&summaries));
    }
    out += &format!("<h2>Roofline</h2>\n<div class=\"wide\">{}</div>\n", plots::roofline(report));
    let ratios = plots::ratios(report);
    if !ratios.is_empty() {
        out += "<h2>Ratios</h2>\n<p class=\"muted\">The rival's time over ours: bars to the right are ours being \
                faster.</p>\n";
        out += &format!("<div class=\"wide\">{ratios}</div>\n");
    }
    let sizes = plots::sizes(report);
    if !sizes.is_empty() {
        out += "<h2>Time against size</h2>\n";
        for (op, plot) in sizes {
            out += &format!("<figure><figcaption>{}</figcaption>{plot}</figure>\n", escape(&op));
        }
    }
    for domain in report.domains() {
        out += &format!("<h2>{}</h2>\n<div class=\"wide\"><table>", escape(domain));
        let cells = cells(report, domain);
        out += &row("th", "", &cells.header);
        for cells in &cells.rows {
            let class = if cells.iter().any(|c| c.starts_with('✗')) { " class=\"wrong\"" } else { "" };
            out += &row("td", class, cells);
        }
        out += "</table></div>\n";
    }
    out += &format!("<p class=\"muted\">{}</p>\n", escape(LEGEND));
    let notes: Vec<String> = report.notes.iter().cloned().chain(row_notes(report)).collect();
    if !notes.is_empty() {
        out += &format!("<h2>Notes</h2>\n{}", list(&notes));
    }
    out + "</body></html>\n"
}

fn row(tag: &str, class: &str, cells: &[String]) -> String {
    let cells: String = cells.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect();
    format!("<tr{class}>{cells}</tr>\n")
}

fn list(lines: &[String]) -> String {
    let items: String = lines.iter().map(|l| format!("<li>{}</li>\n", escape(l))).collect();
    format!("<ul>{items}</ul>\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;

    #[test]
    fn the_page_is_self_contained_and_escaped() {
        let page = super::page(&sample());
        assert!(page.contains("a &lt;fast&gt; &amp; cheap one"));
        for outside in ["src=", "href=", "url(", "@import", "http"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.matches("<svg").count() >= 3);
        assert!(page.contains("class=\"wrong\""));
    }
}
