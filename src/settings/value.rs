//! What the type of a setting must be able to do.

use std::fmt;

use super::records::Record;

/// The type of a setting's value: read from text, shown as text, described for people.
pub trait SettingValue: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// What a declared range compares; `()` for types without an order.
    type Bound: PartialOrd;

    /// Whether the value is a list: comma-separated in flags, a list or comma-separated in YAML.
    const LIST: bool = false;

    /// Whether the flag may stand without a value, which then means `true`.
    const SWITCH: bool = false;

    /// For a list of mappings: which of their keys hold lists of texts. All others hold one text.
    const RECORDS: Option<&'static [&'static str]> = None;

    /// Name of the type on the reference page.
    fn type_name() -> String;

    /// What an error says was expected, as in "expected …".
    fn expected() -> String;

    /// Reads a value. The error says what is wrong beyond "not what was expected"; often it is empty.
    fn parse(text: &str) -> Result<Self, String>;

    /// Reads a list. Only called when [`Self::LIST`] is set.
    fn parse_list(items: &[String]) -> Result<Self, String> {
        Self::parse(&items.join(","))
    }

    /// Reads a list of mappings. Only called when [`Self::RECORDS`] is set.
    fn parse_records(_records: Vec<Record>) -> Result<Self, String> {
        Err(String::new())
    }

    /// The value as text that [`Self::parse`] reads back (a secret shows a mask instead).
    fn show(&self) -> Shown;

    /// The allowed values with their descriptions, when they can be listed.
    fn choices() -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }

    /// What a declared range is checked against; `None` is always within.
    fn bound(&self) -> Option<&Self::Bound> {
        None
    }

    /// A bound of a declared range, as text.
    fn show_bound(_bound: &Self::Bound) -> String {
        String::new()
    }
}

/// A value as shown in YAML and on the reference page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A number, a switch, `null`, or JSON: never quoted.
    Bare(String),
    /// Text, quoted in YAML where it has to be.
    Text(String),
    /// A list of texts.
    List(Vec<String>),
}

impl fmt::Display for Shown {
    /// The value as a flag would take it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shown::Bare(text) | Shown::Text(text) => f.write_str(text),
            Shown::List(items) => f.write_str(&items.join(",")),
        }
    }
}

impl<T: SettingValue> SettingValue for Option<T> {
    type Bound = T::Bound;
    const LIST: bool = T::LIST;

    fn type_name() -> String {
        format!("{} or none", T::type_name())
    }

    fn expected() -> String {
        format!("{}, or `none`", T::expected())
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "~" | "null" | "none" => Ok(None),
            some => T::parse(some).map(Some),
        }
    }

    fn parse_list(items: &[String]) -> Result<Self, String> {
        T::parse_list(items).map(Some)
    }

    fn show(&self) -> Shown {
        self.as_ref().map_or_else(|| Shown::Text("none".to_owned()), T::show)
    }

    fn choices() -> Vec<(&'static str, &'static str)> {
        T::choices()
    }

    fn bound(&self) -> Option<&Self::Bound> {
        self.as_ref().and_then(T::bound)
    }

    fn show_bound(bound: &Self::Bound) -> String {
        T::show_bound(bound)
    }
}

impl<T: SettingValue> SettingValue for Vec<T> {
    type Bound = ();
    const LIST: bool = true;

    fn type_name() -> String {
        format!("list of {}", T::type_name())
    }

    fn expected() -> String {
        format!("a list, each item {}", T::expected())
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        text.split(',').map(|item| T::parse(item.trim())).collect()
    }

    fn parse_list(items: &[String]) -> Result<Self, String> {
        items.iter().map(|item| T::parse(item)).collect()
    }

    fn show(&self) -> Shown {
        Shown::List(self.iter().map(|item| item.show().to_string()).collect())
    }

    fn choices() -> Vec<(&'static str, &'static str)> {
        T::choices()
    }
}
