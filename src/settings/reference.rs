//! The settings described for people: the reference page and `--help`.

use std::fmt::Write as _;

use super::section::{Entry, Item, Section, entries, join};

/// The reference page of `section` as Markdown, from second-level headings on.
pub fn reference<S: Section + Clone>(section: &S) -> String {
    let mut page = String::new();
    let entries = entries(section);
    describe(&mut section.clone(), "", "", &entries, &mut page);
    page
}

/// Writes the section at `path`, its settings first, then the sections within; `docs` is what its place says of it.
fn describe(section: &mut dyn Section, path: &str, docs: &str, entries: &[Entry], page: &mut String) {
    let level = if path.is_empty() { 2 } else { 2 + path.matches('.').count() };
    let title = if path.is_empty() { "Top level".to_owned() } else { format!("`{path}`") };
    let _ = writeln!(page, "{} {title}\n", "#".repeat(level.min(6)));
    for text in [docs, section.about()].into_iter().filter(|text| !text.is_empty()) {
        let _ = writeln!(page, "{}\n", paragraphs(text, ""));
    }
    let mut inner = Vec::new();
    for field in section.fields() {
        let path = join(path, field.name);
        match field.item {
            Item::Section(section) => inner.push((section, path, field.docs)),
            Item::Leaf(_) => {
                let entry = entries.iter().find(|entry| entry.path == path);
                entry.into_iter().for_each(|entry| describe_entry(entry, field.name, page));
            }
        }
    }
    for (section, path, docs) in inner {
        describe(section, &path, docs, entries, page);
    }
}

fn describe_entry(entry: &Entry, name: &str, page: &mut String) {
    let default = match entry.value.to_string() {
        text if text.is_empty() => "empty".to_owned(),
        text => format!("`{text}`"),
    };
    let range = if entry.range.is_empty() { String::new() } else { format!(", {}", entry.range) };
    let _ = writeln!(page, "- **`{name}`** ({}{range}; default {default})  ", entry.type_name);
    let _ = writeln!(page, "  `--{}`, `{}`\n", entry.flag(), entry.variable());
    let _ = writeln!(page, "  {}\n", paragraphs(entry.docs, "  "));
    for (choice, docs) in &entry.choices {
        let _ = writeln!(page, "  - `{choice}`: {}", paragraphs(docs, "    "));
    }
    if !entry.choices.is_empty() {
        page.push('\n');
    }
}

/// Doc comment text with one line per paragraph, further paragraphs indented.
fn paragraphs(docs: &str, indent: &str) -> String {
    let mut text = String::new();
    for line in docs.lines().map(str::trim) {
        match line {
            "" => text.push('\n'),
            line => {
                if text.ends_with('\n') {
                    text.push('\n');
                    text.push_str(indent);
                } else if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(line);
            }
        }
    }
    text.trim().to_owned()
}

/// The flags of `section` for `--help`: grouped by section, each with its type, default and the first sentence of its
/// description.
pub fn help<S: Section + Clone>(section: &S) -> String {
    let mut text = String::new();
    let mut group = None;
    for entry in entries(section) {
        let section_path = entry.path.rsplit_once('.').map_or("", |(section, _)| section).to_owned();
        if group.as_ref() != Some(&section_path) {
            let title = if section_path.is_empty() { "General" } else { section_path.as_str() };
            let _ = writeln!(text, "\n{title}:");
            group = Some(section_path);
        }
        let choices: Vec<&str> = entry.choices.iter().map(|(choice, _)| *choice).collect();
        let value = if choices.is_empty() { entry.type_name.clone() } else { choices.join("|") };
        let _ = writeln!(text, "  --{}=<{value}>", entry.flag());
        let default = match entry.value.to_string() {
            value if value.is_empty() => String::new(),
            value => format!(" [default: {value}]"),
        };
        for line in wrap(&format!("{}{default}", first_sentence(entry.docs)), 100) {
            let _ = writeln!(text, "        {line}");
        }
    }
    text
}

fn first_sentence(docs: &str) -> String {
    let paragraph = paragraphs(docs.split("\n\n").next().unwrap_or_default(), "");
    match paragraph.split_once(". ") {
        Some((sentence, _)) => sentence.to_owned(),
        None => paragraph.trim_end_matches('.').to_owned(),
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
