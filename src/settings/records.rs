//! Settings that are lists of mappings, as Prometheus has its relabelling rules.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

/// One mapping of a list: keys, each once, with texts as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// In the order in which they are written.
    pub entries: Vec<(String, Given)>,
}

/// What a key of a [`Record`] holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// A scalar.
    Text(String),
    /// A list of scalars.
    List(Vec<String>),
}

/// Reads a list of mappings from YAML or JSON; `lists` are the keys that hold lists.
pub fn parse_records(text: &str, lists: &'static [&'static str]) -> Result<Vec<Record>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_yaml_ng::Deserializer::from_str(text).deserialize_seq(Records(lists)).map_err(|error| error.to_string())
}

/// Reads the mappings of a sequence.
pub(super) fn read<'de, A: SeqAccess<'de>>(
    mut sequence: A,
    lists: &'static [&'static str],
) -> Result<Vec<Record>, A::Error> {
    let mut records = Vec::new();
    while let Some(record) = sequence.next_element_seed(Mapping(lists))? {
        records.push(record);
    }
    Ok(records)
}

struct Records(&'static [&'static str]);

impl<'de> Visitor<'de> for Records {
    type Value = Vec<Record>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of mappings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Vec<Record>, A::Error> {
        read(sequence, self.0)
    }
}

struct Mapping(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Mapping {
    type Value = Record;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Record, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Mapping {
    type Value = Record;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Record, A::Error> {
        let mut record = Record::default();
        while let Some(key) = map.next_key::<String>()? {
            if record.entries.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom(format!("`{key}` is set twice in one mapping")));
            }
            let value = match self.0.contains(&key.as_str()) {
                true => Given::List(map.next_value()?),
                false => Given::Text(map.next_value()?),
            };
            record.entries.push((key, value));
        }
        Ok(record)
    }
}
