//! Settings from and to YAML.
//!
//! Reading walks the document and the declared sections together, so every complaint knows its line and column. The
//! text of a scalar is taken as written (`012` for a text stays `012`) and read by the setting's own type.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::load::{Environment, LoadError, Origin, check};
use super::records;
use super::section::{Entry, Field, Item, Leaf, Section, entries, join};
use super::suggest::nearest;
use super::value::Shown;

/// Whether and from where `${NAME}` in values is replaced.
pub(super) type Expand<'a> = Option<&'a Environment>;

/// Sets what the document `text` says; `file` is its name in errors.
pub(super) fn read<S: Section + Clone>(
    section: &mut S,
    file: &str,
    text: &str,
    expand: Expand<'_>,
) -> Result<(), LoadError> {
    let reader = Reader::new(section, expand);
    reader.document(file, text, SectionSeed { section, path: "", reader: &reader })
}

/// Reads sections that depart from `base`, by name: what the mapping `key`, the only one of the document, says. Each is
/// checked as a whole.
pub fn read_overrides<S: Section + Clone>(
    base: &S,
    key: &'static str,
    file: &str,
    text: &str,
) -> Result<BTreeMap<String, S>, LoadError> {
    let reader = Reader::new(base, None);
    let mut sections = BTreeMap::new();
    reader.document(
        file,
        text,
        OverridesSeed { base, key, path: String::new(), sections: &mut sections, reader: &reader },
    )?;
    for (name, section) in &mut sections {
        check(section, &join(key, name))?;
    }
    Ok(sections)
}

struct Reader<'r> {
    known: Vec<String>,
    expand: Expand<'r>,
    /// The message of the error under way: the YAML library keeps its place, this its text.
    complaint: RefCell<Option<String>>,
}

impl<'r> Reader<'r> {
    fn new<S: Section + Clone>(section: &S, expand: Expand<'r>) -> Self {
        let known = entries(section).into_iter().map(|entry| entry.path).collect();
        Self { known, expand, complaint: RefCell::new(None) }
    }

    /// Reads the only document of a file.
    fn document<'de, T>(&self, file: &str, text: &'de str, seed: T) -> Result<(), LoadError>
    where
        T: DeserializeSeed<'de, Value = ()>,
    {
        let mut seed = Some(seed);
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let at = |line, column| Origin::File { path: file.to_owned(), line, column };
            let Some(seed) = seed.take() else {
                return Err(LoadError::new(at(0, 0), "holds more than one YAML document, expected one"));
            };
            if let Err(error) = seed.deserialize(document) {
                let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
                // Ours carries the better text; the library's own (syntax) also repeats the place.
                let message = self.complaint.take().unwrap_or_else(|| {
                    let text = error.to_string();
                    text.split(" at line ").next().unwrap_or_default().to_owned()
                });
                return Err(LoadError::new(at(line, column), message));
            }
        }
        Ok(())
    }

    fn complain<E: serde::de::Error>(&self, message: String) -> E {
        *self.complaint.borrow_mut() = Some(message.clone());
        E::custom(message)
    }

    fn expanded<E: serde::de::Error>(&self, path: &str, text: &str) -> Result<String, E> {
        match self.expand {
            Some(environment) => environment.expand(text).map_err(|error| self.complain(format!("{path}: {error}"))),
            None => Ok(text.to_owned()),
        }
    }
}

struct SectionSeed<'s> {
    section: &'s mut dyn Section,
    path: &'s str,
    reader: &'s Reader<'s>,
}

impl<'de> DeserializeSeed<'de> for SectionSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SectionSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a section (a mapping of setting names to values)")
    }

    /// An empty section keeps its defaults.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    /// An empty document too.
    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let SectionSeed { section, path, reader } = self;
        let mut fields = section.fields();
        let mut seen = vec![false; fields.len()];
        while let Some(index) = map.next_key_seed(KeySeed { fields: &fields, seen: &seen, path, reader })? {
            seen[index] = true;
            let field = &mut fields[index];
            let path = join(path, field.name);
            match &mut field.item {
                Item::Leaf(leaf) => {
                    map.next_value_seed(LeafSeed { leaf: leaf.as_mut(), path: &path, reader })?;
                }
                Item::Section(section) => {
                    map.next_value_seed(SectionSeed { section: *section, path: &path, reader })?;
                }
            }
        }
        Ok(())
    }
}

/// Reads the document of [`read_overrides`], or what its only key holds.
struct OverridesSeed<'s, S> {
    base: &'s S,
    key: &'static str,
    /// Empty above the key.
    path: String,
    sections: &'s mut BTreeMap<String, S>,
    reader: &'s Reader<'s>,
}

impl<'de, S: Section + Clone> DeserializeSeed<'de> for OverridesSeed<'_, S> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: Section + Clone> Visitor<'de> for OverridesSeed<'_, S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "a mapping with the key `{}`", self.key),
            path => write!(f, "a mapping of names to settings in `{path}`"),
        }
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let OverridesSeed { base, key, path, sections, reader } = self;
        while let Some(name) = map.next_key::<String>()? {
            let inner = join(&path, &name);
            if path.is_empty() {
                if name != key {
                    let near = nearest(&name, [key]);
                    return Err(reader.complain(unknown("section", &name, near)));
                }
                map.next_value_seed(OverridesSeed { base, key, path: inner, sections, reader })?;
                continue;
            }
            if sections.contains_key(&name) {
                return Err(reader.complain(format!("`{inner}` is set twice in this file")));
            }
            let mut section = base.clone();
            map.next_value_seed(SectionSeed { section: &mut section, path: &inner, reader })?;
            sections.insert(name, section);
        }
        Ok(())
    }
}

/// Reads a key into the index of its field.
struct KeySeed<'s, 'f> {
    fields: &'s [Field<'f>],
    seen: &'s [bool],
    path: &'s str,
    reader: &'s Reader<'s>,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_, '_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_, '_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a setting")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<usize, E> {
        let path = join(self.path, key);
        match self.fields.iter().position(|field| field.name == key) {
            Some(index) if self.seen[index] => Err(self.reader.complain(format!("`{path}` is set twice in this file"))),
            Some(index) => Ok(index),
            None => {
                let near = nearest(key, self.fields.iter().map(|field| field.name))
                    .map(|name| join(self.path, name))
                    .or_else(|| nearest(&path, self.reader.known.iter().map(String::as_str)).map(str::to_owned));
                Err(self.reader.complain(unknown("setting", &path, near.as_deref())))
            }
        }
    }
}

/// Says that there is no such setting, and which one may have been meant.
pub(super) fn unknown(what: &str, name: &str, near: Option<&str>) -> String {
    match near {
        Some(near) => format!("unknown {what} `{name}`, did you mean `{near}`?"),
        None => format!("unknown {what} `{name}`"),
    }
}

struct LeafSeed<'s> {
    leaf: &'s mut dyn Leaf,
    path: &'s str,
    reader: &'s Reader<'s>,
}

impl LeafSeed<'_> {
    fn set<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let text = self.reader.expanded(self.path, text)?;
        self.leaf.set_text(&text).map_err(|error| self.reader.complain(format!("{}: {error}", self.path)))
    }
}

impl<'de> DeserializeSeed<'de> for LeafSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.leaf.is_list() || self.leaf.records().is_some() {
            true => deserializer.deserialize_any(self),
            false => deserializer.deserialize_str(self),
        }
    }
}

impl<'de> Visitor<'de> for LeafSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.leaf.expected())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.set(text)
    }

    // The rest is reached by lists only: scalars are asked for as text.

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.set("")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.set(&value.to_string())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.set(&value.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.set(&value.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.set(&value.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        if let Some(lists) = self.leaf.records() {
            // `${1}` in one is its own, no variable of the environment.
            let records = records::read(sequence, lists)?;
            let set = self.leaf.set_records(records);
            return set.map_err(|error| self.reader.complain(format!("{}: {error}", self.path)));
        }
        let mut items: Vec<String> = Vec::new();
        while let Some(item) = sequence.next_element::<String>()? {
            items.push(self.reader.expanded(self.path, &item)?);
        }
        self.leaf.set_list(&items).map_err(|error| self.reader.complain(format!("{}: {error}", self.path)))
    }
}

/// Whether YAML is written with the descriptions above the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comments {
    /// Descriptions stand above as comments.
    Descriptions,
    /// Values only.
    None,
}

/// Every setting as YAML that [`load`](super::load()) reads back; secrets are masked.
pub fn to_yaml<S: Section + Clone>(section: &S, comments: Comments) -> String {
    write(entries(section).iter(), comments)
}

/// The settings that differ from their defaults, as YAML.
pub fn changed_yaml<S: Section + Clone + Default>(section: &S) -> String {
    changed_yaml_from(section, &S::default())
}

/// The settings that differ from those of `base`, as YAML.
pub fn changed_yaml_from<S: Section + Clone>(section: &S, base: &S) -> String {
    let base = entries(base);
    let now = entries(section);
    let changed = now.iter().zip(&base).filter(|(now, base)| now.value != base.value);
    write(changed.map(|(now, _)| now), Comments::None)
}

fn write<'e>(entries: impl Iterator<Item = &'e Entry>, comments: Comments) -> String {
    let mut yaml = String::new();
    let mut open: Vec<&str> = Vec::new();
    for entry in entries {
        let mut parts: Vec<&str> = entry.path.split('.').collect();
        let name = parts.pop().unwrap_or_default();
        let shared = parts.iter().zip(&open).take_while(|(a, b)| a == b).count();
        for (depth, part) in parts.iter().enumerate().skip(shared) {
            yaml.push_str(&format!("{:indent$}{part}:\n", "", indent = depth * 2));
        }
        let indent = parts.len() * 2;
        open = parts;
        if comments == Comments::Descriptions {
            for line in entry.docs.lines() {
                yaml.push_str(format!("{:indent$}#{line}", "").trim_end());
                yaml.push('\n');
            }
        }
        yaml.push_str(&format!("{:indent$}{name}: {}\n", "", scalar(&entry.value)));
    }
    if yaml.is_empty() { "{}\n".to_owned() } else { yaml }
}

fn scalar(value: &Shown) -> String {
    match value {
        Shown::Bare(text) => text.clone(),
        Shown::Text(text) => quoted(text),
        Shown::List(items) => format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ")),
    }
}

/// Text as a YAML scalar, quoted unless every reader would take the plain form as this same text.
fn quoted(text: &str) -> String {
    let plain_characters = |c: char| c.is_ascii_alphanumeric() || "_-./:=+".contains(c);
    let starts_plainly = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '.' || c == '/');
    let is_text = matches!(serde_yaml_ng::from_str(text), Ok(serde_yaml_ng::Value::String(read)) if read == text);
    if starts_plainly && text.chars().all(plain_characters) && is_text {
        text.to_owned()
    } else {
        // JSON's quoting is also YAML's.
        serde_json::Value::String(text.to_owned()).to_string()
    }
}
