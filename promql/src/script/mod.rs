//! PromQL test scripts (`*.test` of Prometheus' promqltest) as plain structs: what to load, what to evaluate, what to
//! expect. Running them is their users' part.

mod eval;
mod load;

#[cfg(test)]
mod tests;

use crate::duration::parse_duration;

pub use eval::{Eval, EvalTime, Expected, RangeOfTimes, TextMatch};
pub use load::{Load, LoadSeries};

/// What is wrong with a script, and on which line (from 1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ScriptError {
    /// The line.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// One command of a script.
#[derive(Debug, Clone)]
pub enum Command {
    /// Drop all data.
    Clear,
    /// Add data.
    Load(Load),
    /// Evaluate a query and compare.
    Eval(Box<Eval>),
}

/// Parses a script.
pub fn parse_script(text: &str) -> Result<Vec<Command>, ScriptError> {
    let mut lines = Lines::new(text);
    let mut commands = Vec::new();
    while let Some(line) = lines.next() {
        if line.text.is_empty() {
            continue;
        }
        let word = line.text.split([' ', '\t']).next().unwrap_or_default().to_ascii_lowercase();
        commands.push(if word == "clear" {
            Command::Clear
        } else if word.starts_with("load") {
            Command::Load(load::parse(line, &mut lines)?)
        } else if word.starts_with("eval") {
            Command::Eval(Box::new(eval::parse(line, &mut lines)?))
        } else {
            return Err(line.error(format!("invalid command {:?}", line.text)));
        });
    }
    Ok(commands)
}

/// A line without the blanks around it; a comment counts as empty.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    number: usize,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn error(self, message: impl Into<String>) -> ScriptError {
        ScriptError { line: self.number, message: message.into() }
    }

    /// A duration in milliseconds that this line holds.
    fn duration(self, text: &str) -> Result<i64, ScriptError> {
        parse_duration(text).map_err(|e| self.error(format!("invalid time {text:?}: {e}")))
    }

    /// The first word and what follows the blanks after it.
    fn split_word(text: &'a str) -> (&'a str, &'a str) {
        let (word, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        (word, rest.trim_start())
    }
}

struct Lines<'a> {
    lines: std::iter::Enumerate<std::str::Split<'a, char>>,
    pending: Option<Line<'a>>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self { lines: text.split('\n').enumerate(), pending: None }
    }

    fn next(&mut self) -> Option<Line<'a>> {
        if let Some(line) = self.pending.take() {
            return Some(line);
        }
        let (index, text) = self.lines.next()?;
        let text = text.trim();
        Some(Line { number: index + 1, text: if text.starts_with('#') { "" } else { text } })
    }

    /// The next line of a command's body, which an empty line ends.
    fn next_of_body(&mut self) -> Option<Line<'a>> {
        let line = self.next()?;
        if line.text.is_empty() {
            self.pending = Some(line);
            return None;
        }
        Some(line)
    }
}
