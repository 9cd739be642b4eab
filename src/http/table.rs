//! Pages that are a table: readable and sortable for people, JSON for programs.

use std::fmt::Write as _;

use axum::response::{Html, IntoResponse, Response};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use serde_json::{Map, Value, json};

/// Sorts a table by the column whose head is clicked, numbers as numbers; the second click turns it round.
const SORT: &str = "document.querySelectorAll('th').forEach((th)=>th.onclick=()=>{const t=th.closest('table'),\
i=th.cellIndex,d=th.dataset.d=th.dataset.d==='1'?'-1':'1';const v=(r)=>r.cells[i].textContent;\
[...t.tBodies[0].rows].sort((a,b)=>{const x=v(a),y=v(b),n=x-y;return d*(isNaN(n)||x===''||y===''?x.localeCompare(y):n)})\
.forEach((r)=>t.tBodies[0].append(r))})";

const STYLE: &str = "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}\
td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}th{cursor:pointer;background:#eee}";

/// A page with one table.
pub struct TablePage {
    /// What it shows; the page's title.
    pub title: String,
    /// Sentences before the table.
    pub notes: Vec<String>,
    /// Names of the columns, as JSON has them.
    pub columns: &'static [&'static str],
    /// The rows; each has a value for every column.
    pub rows: Vec<Vec<Value>>,
    /// A button in each row, if there is anything to be done.
    pub action: Option<Action>,
}

/// A button in each row of a table: posts the row's first value to the page's own path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// Name of the form's field.
    pub field: &'static str,
    /// What is on the button.
    pub label: &'static str,
}

impl TablePage {
    /// The page as its reader wants it: JSON when it accepts `application/json`, otherwise HTML.
    pub fn answer(self, headers: &HeaderMap) -> Response {
        let wanted = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        if !wanted.contains("application/json") {
            return Html(self.html()).into_response();
        }
        let mut response = self.json().to_string().into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    fn json(self) -> Value {
        let row = |row: Vec<Value>| {
            Value::Object(self.columns.iter().map(|c| (*c).to_owned()).zip(row).collect::<Map<_, _>>())
        };
        json!({ "title": self.title, "notes": self.notes, "rows": self.rows.into_iter().map(row).collect::<Vec<_>>() })
    }

    fn html(&self) -> String {
        let title = escape(&self.title);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head>\n\
             <body>\n<h1>{title}</h1>\n"
        );
        for note in &self.notes {
            let _ = writeln!(out, "<p>{}</p>", escape(note));
        }
        out.push_str("<table><thead><tr>");
        for column in self.columns {
            let _ = write!(out, "<th>{}</th>", escape(&column.replace('_', " ")));
        }
        if self.action.is_some() {
            out.push_str("<th></th>");
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for value in row {
                let _ = write!(out, "<td>{}</td>", escape(&text(value)));
            }
            if let (Some(Action { field, label }), Some(first)) = (self.action, row.first()) {
                let (label, first) = (escape(label), escape(&text(first)));
                let _ = write!(
                    out,
                    "<td><form method=\"post\"><button name=\"{field}\" value=\"{first}\">{label}</button></form></td>"
                );
            }
            out.push_str("</tr>\n");
        }
        let _ = write!(out, "</tbody></table>\n<script>{SORT}</script>\n</body></html>\n");
        out
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Text as HTML shows it, within elements and quoted attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> TablePage {
        TablePage {
            title: "A <b>".to_owned(),
            notes: vec!["\"n\" & m".to_owned()],
            columns: &["id", "age_seconds"],
            rows: vec![vec![json!("<script>'x'</script>"), json!(3)], vec![json!("b"), Value::Null]],
            action: Some(Action { field: "forget", label: "Forget" }),
        }
    }

    #[test]
    fn whatever_is_shown_is_escaped() {
        let html = page().html();
        assert!(html.contains("<h1>A &lt;b&gt;</h1>") && html.contains("<p>&quot;n&quot; &amp; m</p>"), "{html}");
        assert!(html.contains("<td>&lt;script&gt;&#39;x&#39;&lt;/script&gt;</td><td>3</td>"), "{html}");
        assert!(html.contains("value=\"&lt;script&gt;&#39;x&#39;&lt;/script&gt;\""), "{html}");
        assert_eq!(html.matches("<script>").count(), 1);
    }

    #[test]
    fn programs_get_json() {
        assert_eq!(
            page().json()["rows"],
            json!([{ "id": "<script>'x'</script>", "age_seconds": 3 }, { "id": "b", "age_seconds": null }])
        );
    }
}
