//! A client that costs next to nothing: one connection that is kept, blocking calls, one buffer.
//!
//! Threads and tasks of a client would be in every figure. What is measured is the time from the first byte of the request
//! to the last byte of the answer; nothing is looked at before that but what says where the answer ends.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::Error;

/// Bytes read at once, at most.
const READ_BYTES: usize = 256 << 10;

/// A client of one server.
pub struct Client {
    port: u16,
    connection: Option<TcpStream>,
    /// The answer as it came, and how much of it is there.
    buffer: Vec<u8>,
    filled: usize,
}

/// An answer.
pub struct Answer<'c> {
    /// Its status.
    pub status: u16,
    /// From the request's first byte to the answer's last one.
    pub wall: Duration,
    /// The parts of its body: one, unless it came in chunks.
    pub parts: Vec<&'c [u8]>,
}

impl Answer<'_> {
    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.parts.concat()).into_owned()
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the server ended the connection")]
    Ended,
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the answer cannot be understood: {0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// How the end of an answer is found.
enum Length {
    Known(usize),
    /// Where the next chunk begins.
    Chunks(Vec<std::ops::Range<usize>>, usize),
}

impl Client {
    /// A client of the server at a port of this machine.
    pub fn new(port: u16) -> Self {
        Self { port, connection: None, buffer: vec![0; READ_BYTES], filled: 0 }
    }

    /// Asks for a path, and reads the whole answer.
    pub fn get(&mut self, path: &str, patience: Duration) -> Result<Answer<'_>, Error> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\naccept: */*\r\n\r\n", self.port);
        self.ask(head.as_bytes(), patience)
    }

    /// Sends a body.
    pub fn post(&mut self, path: &str, headers: &str, body: &[u8], patience: Duration) -> Result<Answer<'_>, Error> {
        let head = format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\n{headers}", self.port);
        let mut request = format!("{head}content-length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend_from_slice(body);
        self.ask(&request, patience)
    }

    fn ask(&mut self, request: &[u8], patience: Duration) -> Result<Answer<'_>, Error> {
        let was_kept = self.connection.is_some();
        let (wall, status, body, length) = match self.ask_once(request, patience) {
            // A server may end a connection that nothing came over for long.
            Err(Failed::Ended) if was_kept && self.filled == 0 => self.ask_once(request, patience)?,
            asked => asked?,
        };
        let parts = match length {
            Length::Known(bytes) => vec![&self.buffer[body..body + bytes]],
            Length::Chunks(chunks, _) => chunks.into_iter().map(|chunk| &self.buffer[chunk]).collect(),
        };
        Ok(Answer { status, wall, parts })
    }

    fn ask_once(&mut self, request: &[u8], patience: Duration) -> Result<(Duration, u16, usize, Length), Failed> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => TcpStream::connect(("127.0.0.1", self.port))?,
        };
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(patience))?;
        self.filled = 0;
        let begun = Instant::now();
        connection.write_all(request)?;
        let (status, body, length) = self.read(&mut connection, begun, patience)?;
        let wall = begun.elapsed();
        self.connection = Some(connection);
        Ok((wall, status, body, length))
    }

    /// Reads to the end of the answer: its status, where its body begins, and where its parts are.
    fn read(
        &mut self,
        connection: &mut TcpStream,
        begun: Instant,
        patience: Duration,
    ) -> Result<(u16, usize, Length), Failed> {
        let mut head = None;
        loop {
            if self.buffer.len() - self.filled < READ_BYTES / 2 {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
            let end = self.buffer.len().min(self.filled + READ_BYTES);
            match connection.read(&mut self.buffer[self.filled..end]) {
                Ok(0) => return Err(Failed::Ended),
                Ok(read) => self.filled += read,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(Failed::Late(patience));
                }
                Err(error) => return Err(error.into()),
            }
            if begun.elapsed() > patience {
                return Err(Failed::Late(patience));
            }
            let (status, body, mut length) = match head.take() {
                Some(known) => known,
                None => match parse_head(&self.buffer[..self.filled])? {
                    Some(parsed) => parsed,
                    None => continue,
                },
            };
            let is_whole = match &mut length {
                Length::Known(bytes) => self.filled >= body + *bytes,
                Length::Chunks(chunks, next) => find_chunks(&self.buffer[..self.filled], chunks, next)?,
            };
            if is_whole {
                return Ok((status, body, length));
            }
            head = Some((status, body, length));
        }
    }
}

/// Status, beginning of the body, and how long it is; `None` while the headers are not there.
fn parse_head(bytes: &[u8]) -> Result<Option<(u16, usize, Length)>, Failed> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status =
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(Failed::Malformed("its status"))?;
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let body = end + 4;
    let length = match (header("content-length:"), header("transfer-encoding:")) {
        (Some(bytes), _) => Length::Known(bytes.parse().map_err(|_| Failed::Malformed("its length"))?),
        (None, Some("chunked")) => Length::Chunks(Vec::new(), body),
        (None, _) if status == 204 => Length::Known(0),
        (None, _) => return Err(Failed::Malformed("it does not tell its length")),
    };
    Ok(Some((status, body, length)))
}

/// Finds the chunks that are there whole; true when the last one is.
fn find_chunks(bytes: &[u8], chunks: &mut Vec<std::ops::Range<usize>>, next: &mut usize) -> Result<bool, Failed> {
    while let Some(rest) = bytes.get(*next..)
        && let Some(line) = rest.windows(2).position(|two| two == b"\r\n")
    {
        let size = std::str::from_utf8(&rest[..line]).ok().and_then(|size| size.split(';').next());
        let size = size.and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
        let size = size.ok_or(Failed::Malformed("the size of a chunk"))?;
        let begin = *next + line + 2;
        // A line end follows each chunk, and the last one, which is empty.
        if bytes.len() < begin + size + 2 {
            return Ok(false);
        }
        if size == 0 {
            return Ok(true);
        }
        chunks.push(begin..begin + size);
        *next = begin + size + 2;
    }
    Ok(false)
}
