//! Putting the settings of a process together: defaults, then the YAML file, the environment and the flags.

use std::collections::BTreeMap;
use std::fmt;

use super::section::{Entry, Item, Section, join, walk};
use super::suggest::nearest;
use super::yaml;

/// Where a setting that is not right was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the YAML file; line and column count from one, zero when the place is not known.
    File {
        /// Name of the file.
        path: String,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In an environment variable.
    Variable(String),
    /// In a flag.
    Flag(String),
    /// In how several settings fit together.
    Section(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line: 0, .. } => f.write_str(path),
            Origin::File { path, line, column } => write!(f, "{path}:{line}:{column}"),
            Origin::Variable(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "flag --{name}"),
            Origin::Section(path) if path.is_empty() => f.write_str("settings"),
            Origin::Section(path) => write!(f, "settings in `{path}`"),
        }
    }
}

/// Settings that cannot be used: where and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct LoadError {
    /// Where.
    pub origin: Origin,
    /// Why, with what is expected.
    pub message: String,
}

impl LoadError {
    pub(super) fn new(origin: Origin, message: impl Into<String>) -> LoadError {
        LoadError { origin, message: message.into() }
    }
}

/// A YAML file of settings.
#[derive(Debug, Clone, Copy)]
pub struct YamlFile<'a> {
    /// Its name in errors.
    pub name: &'a str,
    /// What it holds.
    pub text: &'a str,
    /// Whether `${NAME}` and `${NAME:default}` in values are replaced from the environment.
    pub expand_env: bool,
}

/// Defaults, overlaid with the file, then the environment, then the flags; checked as a whole.
///
/// Variables and flags that are not of `S` are left alone: [`Environment::refuse_unknown`] and [`read_flags`] have
/// judged them against everything that exists.
pub fn load<S: Section + Default + Clone>(
    file: Option<YamlFile<'_>>,
    environment: &Environment,
    flags: &[Flag],
) -> Result<S, LoadError> {
    let mut settings = S::default();
    if let Some(file) = file {
        yaml::read(&mut settings, file.name, file.text, file.expand_env.then_some(environment))?;
    }
    let mut outcome = Ok(());
    walk(&mut settings, "", &mut |path, _, leaf| {
        if outcome.is_err() {
            return;
        }
        let variable = variable_name(path);
        if let Some(value) = environment.variables.get(&variable)
            && let Err(message) = leaf.set_text(value)
        {
            outcome = Err(LoadError::new(Origin::Variable(variable), message));
        }
    });
    outcome?;
    let mut outcome = Ok(());
    walk(&mut settings, "", &mut |path, _, leaf| {
        let name = flag_name(path);
        // The last one counts, so that a script can append to given arguments.
        let given = flags.iter().rfind(|flag| flag.name == name);
        if let Some(flag) = given
            && outcome.is_ok()
            && let Err(message) = leaf.set_text(&flag.value)
        {
            outcome = Err(LoadError::new(Origin::Flag(name), message));
        }
    });
    outcome?;
    check(&mut settings, "")?;
    Ok(settings)
}

/// Whether a section and all within fit together.
pub(super) fn check(section: &mut dyn Section, at: &str) -> Result<(), LoadError> {
    section.check().map_err(|message| LoadError::new(Origin::Section(at.to_owned()), message))?;
    for field in section.fields() {
        if let Item::Section(inner) = field.item {
            check(inner, &join(at, field.name))?;
        }
    }
    Ok(())
}

/// The environment variable of the setting at `path`: `SKALD_SERVER_HTTP_LISTEN_ADDRESS`.
pub(super) fn variable_name(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_ascii_uppercase())
}

/// The flag of the setting at `path`, without its dashes: `server.http-listen-address`.
pub(super) fn flag_name(path: &str) -> String {
    path.replace('_', "-")
}

const PREFIX: &str = "SKALD_";

/// The environment variables of the process.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// Takes the variables given as pairs.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Environment {
        Environment { variables: variables.into_iter().collect() }
    }

    /// The variables of this process. One of ours that is not UTF-8 is an error, any other such one is not seen.
    pub fn of_process() -> Result<Environment, LoadError> {
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => {
                    variables.insert(name, value);
                }
                (Ok(name), Err(_)) if name.starts_with(PREFIX) => {
                    return Err(LoadError::new(Origin::Variable(name), "is not UTF-8"));
                }
                _ => {}
            }
        }
        Ok(Environment { variables })
    }

    /// Fails on a `SKALD_…` variable that none of `known` has, except those Kubernetes makes for a service of that name.
    pub fn refuse_unknown(&self, known: &[Entry]) -> Result<(), LoadError> {
        let names: Vec<String> = known.iter().map(Entry::variable).collect();
        for name in self.variables.keys().filter(|name| name.starts_with(PREFIX)) {
            if names.contains(name) || is_kubernetes_service_variable(name) {
                continue;
            }
            let near = nearest(name, names.iter().map(String::as_str));
            return Err(LoadError::new(
                Origin::Variable(name.clone()),
                match near {
                    Some(near) => format!("no setting has this name, did you mean `{near}`?"),
                    None => "no setting has this name".to_owned(),
                },
            ));
        }
        Ok(())
    }

    /// Replaces `${NAME}` and `${NAME:default}`; `$${` stands for a literal `${`.
    pub(super) fn expand(&self, text: &str) -> Result<String, String> {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, after) = rest.split_at(at);
            if let Some(before) = before.strip_suffix('$') {
                expanded.push_str(before);
                expanded.push_str("${");
                rest = &after[2..];
                continue;
            }
            expanded.push_str(before);
            let close = after.find('}').ok_or_else(|| format!("`{after}` lacks its closing brace"))?;
            let (name, default) = match after[2..close].split_once(':') {
                Some((name, default)) => (name, Some(default)),
                None => (&after[2..close], None),
            };
            match (self.variables.get(name), default) {
                (Some(value), _) => expanded.push_str(value),
                (None, Some(default)) => expanded.push_str(default),
                (None, None) => {
                    return Err(format!("environment variable {name} is not set (`${{{name}:}}` allows that)"));
                }
            }
            rest = &after[close + 1..];
        }
        expanded.push_str(rest);
        Ok(expanded)
    }
}

/// Kubernetes gives every container `<SERVICE>_SERVICE_HOST`, `<SERVICE>_PORT_9009_TCP_ADDR` and so on for each service
/// of its namespace; a service called `skald` or `skald-…` must not keep Skald from starting.
fn is_kubernetes_service_variable(name: &str) -> bool {
    let is_port = |rest: &str| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|port| port.parse::<u16>().is_ok())
            && parts.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
            && parts.next().is_none_or(|what| matches!(what, "PROTO" | "PORT" | "ADDR"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.match_indices("_PORT_").any(|(at, separator)| is_port(&name[at + separator.len()..]))
}

/// A flag with its value, as given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Its name without dashes in front.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A command line taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    /// The flags that set something.
    pub flags: Vec<Flag>,
    /// What stands between the flags.
    pub words: Vec<String>,
    /// The flags without value and setting, such as `help`, of those asked for.
    pub requests: Vec<String>,
}

/// Takes a command line (without the program's name) apart: `--name=value`, `--name value`, or with a single dash.
///
/// `known` are all settings, `requests` the names of flags that only ask for something. A switch alone means `true`.
pub fn read_flags(arguments: &[String], known: &[Entry], requests: &[&str]) -> Result<Arguments, LoadError> {
    let mut read = Arguments::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            read.words.push(argument.clone());
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let origin = || Origin::Flag(name.to_owned());
        if value.is_none() && requests.contains(&name) {
            read.requests.push(name.to_owned());
            continue;
        }
        let Some(entry) = known.iter().find(|entry| entry.flag() == name) else {
            let names: Vec<String> = known.iter().map(Entry::flag).collect();
            let near = nearest(name, names.iter().map(String::as_str).chain(requests.iter().copied()));
            let message = match near {
                Some(near) => format!("there is no such flag, did you mean `--{near}`?"),
                None => "there is no such flag, see --help".to_owned(),
            };
            return Err(LoadError::new(origin(), message));
        };
        let value = match value {
            Some(value) => value,
            None if entry.is_switch => "true".to_owned(),
            None => arguments.next().cloned().ok_or_else(|| LoadError::new(origin(), "its value is missing"))?,
        };
        read.flags.push(Flag { name: name.to_owned(), value });
    }
    Ok(read)
}
