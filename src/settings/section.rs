//! A section of settings as the mechanism sees it: names, descriptions and values, without their Rust types.

use std::ops::{Bound, RangeBounds};

use super::load::{flag_name, variable_name};
use super::records::Record;
use super::value::{SettingValue, Shown};

/// A group of settings: a mapping in YAML. Implemented by the macro `settings!`.
pub trait Section {
    /// What the section is about.
    fn about(&self) -> &'static str;

    /// The settings and inner sections in the order of their declaration.
    fn fields(&mut self) -> Vec<Field<'_>>;

    /// Whether the values fit together; the error names the settings and says what is expected.
    fn check(&self) -> Result<(), String>;
}

/// One setting or inner section.
pub struct Field<'a> {
    /// The YAML key.
    pub name: &'static str,
    /// What it does, as written above its declaration; for an inner section this stands before the section's own text.
    pub docs: &'static str,
    /// The setting or section.
    pub item: Item<'a>,
}

/// What a [`Field`] holds.
pub enum Item<'a> {
    /// A single setting.
    Leaf(Box<dyn Leaf + 'a>),
    /// An inner section.
    Section(&'a mut dyn Section),
}

/// A single setting, its type erased.
pub trait Leaf {
    /// Name of the type on the reference page.
    fn type_name(&self) -> String;
    /// What an error says was expected.
    fn expected(&self) -> String;
    /// The declared range in words; empty without one.
    fn range(&self) -> String;
    /// The allowed values with their descriptions, when they can be listed.
    fn choices(&self) -> Vec<(&'static str, &'static str)>;
    /// Whether the value is a list.
    fn is_list(&self) -> bool;
    /// Whether the flag may stand without a value.
    fn is_switch(&self) -> bool;
    /// The value as shown to people.
    fn show(&self) -> Shown;
    /// Sets the value from text; the error says what is wrong and what is expected.
    fn set_text(&mut self, text: &str) -> Result<(), String>;
    /// Sets the value from a list.
    fn set_list(&mut self, items: &[String]) -> Result<(), String>;
    /// For a list of mappings, which of their keys hold lists.
    fn records(&self) -> Option<&'static [&'static str]>;
    /// Sets the value from a list of mappings.
    fn set_records(&mut self, records: Vec<Record>) -> Result<(), String>;
}

/// A setting with the range it must lie in (`..` when any value will do).
pub struct Ranged<'a, T, R> {
    value: &'a mut T,
    range: R,
}

impl<'a, T: SettingValue, R: RangeBounds<T::Bound>> Ranged<'a, T, R> {
    /// Binds a field to its declared range.
    pub fn new(value: &'a mut T, range: R) -> Self {
        Ranged { value, range }
    }

    fn set(&mut self, given: &str, parsed: Result<T, String>) -> Result<(), String> {
        if T::RECORDS.is_some() {
            // Its error says which mapping is wrong; all of them would hide it.
            *self.value = parsed?;
            return Ok(());
        }
        let wrong = |why: &str| {
            let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
            format!("{given:?} is not valid{why}, expected {}", self.expected())
        };
        let value = parsed.map_err(|why| wrong(&why))?;
        if value.bound().is_some_and(|bound| !self.range.contains(bound)) {
            return Err(wrong("out of range"));
        }
        *self.value = value;
        Ok(())
    }
}

impl<T: SettingValue, R: RangeBounds<T::Bound>> Leaf for Ranged<'_, T, R> {
    fn type_name(&self) -> String {
        T::type_name()
    }

    fn expected(&self) -> String {
        match self.range() {
            range if range.is_empty() => T::expected(),
            range => format!("{}, {range}", T::expected()),
        }
    }

    fn range(&self) -> String {
        let from = match self.range.start_bound() {
            Bound::Included(from) => format!("at least {}", T::show_bound(from)),
            Bound::Excluded(from) => format!("more than {}", T::show_bound(from)),
            Bound::Unbounded => String::new(),
        };
        let to = match self.range.end_bound() {
            Bound::Included(to) => format!("at most {}", T::show_bound(to)),
            Bound::Excluded(to) => format!("less than {}", T::show_bound(to)),
            Bound::Unbounded => String::new(),
        };
        let and = if from.is_empty() || to.is_empty() { "" } else { " and " };
        format!("{from}{and}{to}")
    }

    fn choices(&self) -> Vec<(&'static str, &'static str)> {
        T::choices()
    }

    fn is_list(&self) -> bool {
        T::LIST
    }

    fn is_switch(&self) -> bool {
        T::SWITCH
    }

    fn show(&self) -> Shown {
        self.value.show()
    }

    fn set_text(&mut self, text: &str) -> Result<(), String> {
        self.set(text, T::parse(text))
    }

    fn set_list(&mut self, items: &[String]) -> Result<(), String> {
        self.set(&items.join(","), T::parse_list(items))
    }

    fn records(&self) -> Option<&'static [&'static str]> {
        T::RECORDS
    }

    fn set_records(&mut self, records: Vec<Record>) -> Result<(), String> {
        self.set("", T::parse_records(records))
    }
}

/// One setting of a whole tree of sections, flattened.
#[derive(Debug, Clone)]
pub struct Entry {
    /// YAML path, dotted: `server.http_listen_address`.
    pub path: String,
    /// What it does.
    pub docs: &'static str,
    /// Name of its type.
    pub type_name: String,
    /// The declared range in words; empty without one.
    pub range: String,
    /// The allowed values with their descriptions, when they can be listed.
    pub choices: Vec<(&'static str, &'static str)>,
    /// Whether the flag may stand without a value.
    pub is_switch: bool,
    /// The value.
    pub value: Shown,
}

impl Entry {
    /// The flag without its dashes: `server.http-listen-address`.
    pub fn flag(&self) -> String {
        flag_name(&self.path)
    }

    /// The environment variable: `SKALD_SERVER_HTTP_LISTEN_ADDRESS`.
    pub fn variable(&self) -> String {
        variable_name(&self.path)
    }
}

/// Every setting of `section` and the sections within, in the order of their declaration.
pub fn entries<S: Section + Clone>(section: &S) -> Vec<Entry> {
    let mut entries = Vec::new();
    walk(&mut section.clone(), "", &mut |path, docs, leaf| {
        entries.push(Entry {
            path: path.to_owned(),
            docs,
            type_name: leaf.type_name(),
            range: leaf.range(),
            choices: leaf.choices(),
            is_switch: leaf.is_switch(),
            value: leaf.show(),
        });
    });
    entries
}

/// Calls `visit` with the path, description and handle of every setting.
pub(super) fn walk(section: &mut dyn Section, at: &str, visit: &mut dyn FnMut(&str, &'static str, &mut dyn Leaf)) {
    for mut field in section.fields() {
        let path = join(at, field.name);
        match &mut field.item {
            Item::Leaf(leaf) => visit(&path, field.docs, leaf.as_mut()),
            Item::Section(inner) => walk(*inner, &path, visit),
        }
    }
}

/// The path of `name` within the section at `at`.
pub(super) fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}
