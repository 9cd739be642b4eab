//! Cuts a query into words, on demand.
//!
//! What a character means depends on where it stands, so the lexer knows three places: outside, inside braces (where
//! keywords are plain names), and right after `[` or a word of a duration expression there. After the first number
//! inside brackets the words are again those of the outside, except that letters may only begin a word of a duration
//! expression and `:` separates the range from the step. Prometheus' lexer works this way, and its error messages
//! show it.

use skald_model::Quoted;
use skald_model::quote::QuotedChar;

use super::error::ParseError;
use super::token::{Keyword, Kind, Token, duration_word, keyword};
use crate::ast::{BinaryOp, Span};

/// Where the lexer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    Braces,
    Duration,
}

/// A lazy stream of tokens.
pub(crate) struct Lexer<'a> {
    input: &'a str,
    /// First byte not yet consumed.
    at: usize,
    place: Place,
    in_bracket: bool,
    /// Whether the `:` of the current bracket has been seen.
    got_colon: bool,
    /// Whether any bracket so far had a number; a `:` may not come first.
    got_number: bool,
    open_parens: usize,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(input: &'a str) -> Self {
        Self {
            input,
            at: 0,
            place: Place::Outside,
            in_bracket: false,
            got_colon: false,
            got_number: false,
            open_parens: 0,
        }
    }

    /// The text that is cut.
    pub(crate) fn input(&self) -> &'a str {
        self.input
    }

    /// The next token; at the end always [`Kind::Eof`].
    pub(crate) fn next(&mut self) -> Result<Token, ParseError> {
        loop {
            self.skip_spaces();
            if self.place == Place::Duration || self.peek() != Some('#') {
                break;
            }
            let rest = self.rest();
            self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
        }
        let start = self.at;
        let kind = match self.place {
            Place::Outside => self.outside(start),
            Place::Braces => self.inside_braces(start),
            Place::Duration => self.inside_duration(start),
        }?;
        Ok(Token { kind, start, end: self.at })
    }

    fn rest(&self) -> &'a str {
        &self.input[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn accept(&mut self, accepted: impl Fn(u8) -> bool) -> bool {
        let yes = self.input.as_bytes().get(self.at).is_some_and(|b| b.is_ascii() && accepted(*b));
        self.at += usize::from(yes);
        yes
    }

    fn accept_run(&mut self, accepted: impl Fn(u8) -> bool) {
        while self.accept(&accepted) {}
    }

    fn skip_spaces(&mut self) {
        self.accept_run(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
    }

    fn error(&self, start: usize, message: impl Into<String>) -> ParseError {
        ParseError::new(self.input, Span { start, end: self.input.len() }, message)
    }

    fn followed_by_digit(&self) -> bool {
        self.input.as_bytes().get(self.at).is_some_and(u8::is_ascii_digit)
    }

    fn outside(&mut self, start: usize) -> Result<Kind, ParseError> {
        let Some(c) = self.bump() else {
            return match (self.open_parens, self.in_bracket) {
                (0, false) => Ok(Kind::Eof),
                (0, true) => Err(self.error(start, "unclosed left bracket")),
                _ => Err(self.error(start, "unclosed left parenthesis")),
            };
        };
        let next = self.peek();
        let kind = match c {
            ',' => Kind::Comma,
            '=' if next == Some('=') => self.second(Kind::Operator(BinaryOp::Eq)),
            '=' if next == Some('~') => {
                return Err(self.error(start, "unexpected character after '=': '~'"));
            }
            '=' => Kind::Equal,
            '!' if next == Some('=') => self.second(Kind::Operator(BinaryOp::Ne)),
            '!' => {
                let message = format!("unexpected character after '!': {}", described(next));
                return Err(self.error(start, message));
            }
            '<' if next == Some('=') => self.second(Kind::Operator(BinaryOp::Le)),
            '<' if next == Some('/') => self.second(Kind::Operator(BinaryOp::TrimUpper)),
            '<' => Kind::Operator(BinaryOp::Lt),
            '>' if next == Some('=') => self.second(Kind::Operator(BinaryOp::Ge)),
            '>' if next == Some('/') => self.second(Kind::Operator(BinaryOp::TrimLower)),
            '>' => Kind::Operator(BinaryOp::Gt),
            '@' => Kind::At,
            '"' | '\'' | '`' => self.string(start, c)?,
            ':' if self.in_bracket => {
                if self.got_colon {
                    return Err(self.error(start, "unexpected colon ':'"));
                }
                self.got_colon = true;
                Kind::Colon
            }
            c if is_alpha(c) && self.in_bracket => match self.duration_word(start) {
                Some(kind) => kind,
                None => {
                    let message = format!("unexpected character: {}, expected ':'", QuotedChar(c));
                    return Err(self.error(start, message));
                }
            },
            c if is_alpha(c) || c == ':' => self.word(start),
            '(' | ')' => self.paren(c)?,
            '{' => {
                self.place = Place::Braces;
                Kind::LeftBrace
            }
            '[' => {
                if self.in_bracket {
                    return Err(self.error(start, "unexpected left bracket '['"));
                }
                self.in_bracket = true;
                self.got_colon = false;
                self.place = Place::Duration;
                Kind::LeftBracket
            }
            ']' => {
                if !self.in_bracket {
                    return Err(self.error(start, "unexpected right bracket ']'"));
                }
                self.in_bracket = false;
                Kind::RightBracket
            }
            c if c.is_ascii_digit() || (c == '.' && self.followed_by_digit()) => self.number(start)?,
            c => match arithmetic(c) {
                Some(op) => Kind::Operator(op),
                None => return Err(self.error(start, format!("unexpected character: {}", QuotedChar(c)))),
            },
        };
        Ok(kind)
    }

    /// Consumes the second character of an operator.
    fn second(&mut self, kind: Kind) -> Kind {
        self.bump();
        kind
    }

    fn paren(&mut self, c: char) -> Result<Kind, ParseError> {
        if c == '(' {
            self.open_parens += 1;
            return Ok(Kind::LeftParen);
        }
        match self.open_parens.checked_sub(1) {
            Some(open) => self.open_parens = open,
            None => return Err(self.error(self.at, "unexpected right parenthesis ')'")),
        }
        Ok(Kind::RightParen)
    }

    fn inside_braces(&mut self, start: usize) -> Result<Kind, ParseError> {
        let Some(c) = self.bump() else {
            return Err(self.error(start, "unexpected end of input inside braces"));
        };
        let next = self.peek();
        Ok(match c {
            ',' => Kind::Comma,
            '"' | '\'' | '`' => self.string(start, c)?,
            '=' if next == Some('~') => self.second(Kind::MatchRegex),
            '=' => Kind::Equal,
            '!' if next == Some('~') => self.second(Kind::MatchNotRegex),
            '!' if next == Some('=') => self.second(Kind::Operator(BinaryOp::Ne)),
            '!' => {
                let message = format!("unexpected character after '!' inside braces: {}", described(next));
                return Err(self.error(start, message));
            }
            '{' => return Err(self.error(start, "unexpected left brace '{'")),
            '}' => {
                self.place = Place::Outside;
                Kind::RightBrace
            }
            c if is_alpha(c) => {
                self.accept_run(is_word_byte);
                Kind::Identifier
            }
            c => {
                let message = format!("unexpected character inside braces: {}", QuotedChar(c));
                return Err(self.error(start, message));
            }
        })
    }

    fn inside_duration(&mut self, start: usize) -> Result<Kind, ParseError> {
        let Some(c) = self.bump() else {
            return Err(self.error(start, "unexpected end of input in duration expression"));
        };
        Ok(match c {
            ']' => {
                self.in_bracket = false;
                self.got_colon = false;
                self.place = Place::Outside;
                Kind::RightBracket
            }
            ':' => {
                if !self.got_number {
                    let message = "unexpected colon before duration in duration expression";
                    return Err(self.error(self.at, message));
                }
                if self.got_colon {
                    let message = "unexpected repeated colon in duration expression";
                    return Err(self.error(self.at, message));
                }
                self.got_colon = true;
                Kind::Colon
            }
            '(' | ')' => self.paren(c)?,
            ',' => Kind::Comma,
            c if c.is_ascii_digit() || (c == '.' && self.followed_by_digit()) => {
                self.got_number = true;
                self.place = Place::Outside;
                self.number(start)?
            }
            c => {
                let word = if is_alpha(c) { self.duration_word(start) } else { arithmetic(c).map(Kind::Operator) };
                match word {
                    Some(kind) => kind,
                    None => {
                        let message = format!("unexpected character in duration expression: {}", QuotedChar(c));
                        return Err(self.error(start, message));
                    }
                }
            }
        })
    }

    /// A word of a duration expression; its first letter has been consumed.
    fn duration_word(&mut self, start: usize) -> Option<Kind> {
        self.accept_run(|b| b == b'_' || b.is_ascii_alphabetic());
        duration_word(&self.input[start..self.at]).map(Kind::Context)
    }

    /// A name or keyword; its first character has been consumed.
    fn word(&mut self, start: usize) -> Kind {
        self.accept_run(|b| is_word_byte(b) || b == b':');
        let word = &self.input[start..self.at];
        match keyword(word) {
            // These became keywords late: a metric may have their name unless a parenthesis follows.
            Some(Kind::Keyword(Keyword::Fill | Keyword::FillLeft | Keyword::FillRight))
                if !self.rest().trim_start_matches([' ', '\t', '\n', '\r']).starts_with('(') =>
            {
                Kind::Identifier
            }
            Some(kind) => kind,
            None if word.contains(':') => Kind::MetricIdentifier,
            None => Kind::Identifier,
        }
    }

    fn number(&mut self, start: usize) -> Result<Kind, ParseError> {
        self.at = start;
        if self.scan_number() {
            return Ok(Kind::Number);
        }
        if self.scan_duration() {
            return Ok(Kind::Duration);
        }
        let message = format!("bad number or duration syntax: {}", Quoted(&self.input[start..self.at]));
        Err(self.error(start, message))
    }

    /// Consumes what looks like a number; what it is worth is found out later. On `false` the bytes consumed so far may
    /// begin a duration.
    fn scan_number(&mut self) -> bool {
        let mut hex = false;
        if self.accept(|b| b == b'0') && self.accept(|b| matches!(b, b'x' | b'X')) {
            self.accept(|b| b == b'_');
            hex = true;
        }
        let is_digit = |b: u8| if hex { b.is_ascii_hexdigit() } else { b.is_ascii_digit() };
        self.accept(|b| b == b'.');
        self.accept(is_digit);
        let (mut dot, mut exponent) = (false, false);
        while let Some(b) = self.input.as_bytes().get(self.at).copied() {
            match b {
                b'.' => {
                    self.at += 1;
                    if dot || self.accept(|b| matches!(b, b'_' | b'.')) || hex {
                        return false;
                    }
                    dot = true;
                }
                // In hexadecimal too: there the first `e` counts as an exponent, with what that forbids to follow.
                b'e' | b'E' => {
                    self.at += 1;
                    if exponent {
                        return false;
                    }
                    exponent = true;
                    self.accept(|b| matches!(b, b'+' | b'-'));
                    if self.accept(|b| matches!(b, b'.' | b'_' | b'e' | b'E')) || self.at == self.input.len() {
                        return false;
                    }
                }
                b'_' => {
                    self.at += 1;
                    if self.accept(|b| matches!(b, b'.' | b'_' | b'e' | b'E')) || self.at == self.input.len() {
                        return false;
                    }
                }
                b if is_digit(b) => self.accept_run(is_digit),
                _ => break,
            }
        }
        !self.input.as_bytes().get(self.at).copied().is_some_and(is_word_byte)
    }

    /// Consumes the unit of a number already consumed, and further numbers with units.
    fn scan_duration(&mut self) -> bool {
        if !self.accept(|b| b"smhdwy".contains(&b)) {
            return false;
        }
        self.accept(|b| b == b's');
        while self.accept(|b| b.is_ascii_digit()) {
            self.accept_run(|b| b.is_ascii_digit());
            if !self.accept(|b| b"smhdw".contains(&b)) {
                return false;
            }
            self.accept(|b| b == b's');
        }
        !self.accept(is_word_byte)
    }

    /// A string; its opening quote has been consumed. Escapes are only checked here.
    fn string(&mut self, start: usize, quote: char) -> Result<Kind, ParseError> {
        let raw = quote == '`';
        loop {
            match self.bump() {
                None if raw => return Err(self.error(start, "unterminated raw string")),
                None => return Err(self.error(start, "unterminated quoted string")),
                Some('\n') if !raw => return Err(self.error(start, "unterminated quoted string")),
                // What is left of damaged UTF-8 by the time a text gets here.
                Some(char::REPLACEMENT_CHARACTER) => return Err(self.error(start, "invalid UTF-8 rune")),
                Some('\\') if !raw => self.escape(quote).map_err(|message| self.error(start, message))?,
                Some(c) if c == quote => return Ok(Kind::String),
                Some(_) => {}
            }
        }
    }

    fn escape(&mut self, quote: char) -> Result<(), String> {
        let (digits, base, max) = match self.bump() {
            Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\') => return Ok(()),
            Some(c) if c == quote => return Ok(()),
            Some('0'..='7') => {
                self.at -= 1;
                (3, 8, 255)
            }
            Some('x') => (2, 16, 255),
            Some('u') => (4, 16, u32::from(char::MAX)),
            Some('U') => (8, 16, u32::from(char::MAX)),
            Some(c) => return Err(format!("unknown escape sequence {}", code_point(c))),
            None => return Err("escape sequence not terminated".to_owned()),
        };
        let mut value: u32 = 0;
        for _ in 0..digits {
            let Some(c) = self.bump() else { return Err("escape sequence not terminated".to_owned()) };
            let Some(digit) = c.to_digit(base) else {
                return Err(format!("illegal character {} in escape sequence", code_point(c)));
            };
            value = value.wrapping_mul(base).wrapping_add(digit);
        }
        if value > max || (0xD800..0xE000).contains(&value) {
            return Err("escape sequence is an invalid Unicode code point".to_owned());
        }
        Ok(())
    }
}

/// `U+0063 'c'`, or only the number of a character that does not print.
fn code_point(c: char) -> String {
    let number = format!("U+{:04X}", u32::from(c));
    if skald_model::quote::is_print(c) { format!("{number} '{c}'") } else { number }
}

/// A character, or what stands for the end of the input.
fn described(c: Option<char>) -> QuotedChar {
    QuotedChar(c.unwrap_or(char::REPLACEMENT_CHARACTER))
}

fn arithmetic(c: char) -> Option<BinaryOp> {
    Some(match c {
        '+' => BinaryOp::Add,
        '-' => BinaryOp::Sub,
        '*' => BinaryOp::Mul,
        '/' => BinaryOp::Div,
        '%' => BinaryOp::Mod,
        '^' => BinaryOp::Pow,
        _ => return None,
    })
}

fn is_alpha(c: char) -> bool {
    c == '_' || c.is_ascii_alphabetic()
}

fn is_word_byte(b: u8) -> bool {
    b == b'_' || b.is_ascii_alphanumeric()
}
