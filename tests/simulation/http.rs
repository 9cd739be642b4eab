//! The little of HTTP/1.1 that senders and readers need.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::network::HostNet;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request, one connection for each.
pub struct Request<'a> {
    pub method: &'a str,
    pub address: &'a str,
    pub path: &'a str,
    pub tenant: Option<&'a str>,
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

/// Sends a request and reads its answer, which must be whole.
pub async fn ask(net: &HostNet, request: Request<'_>, timeout: Duration) -> io::Result<Answer> {
    let asking = async {
        let mut stream = net.connect_to(request.address).await?;
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            request.method,
            request.path,
            request.address,
            request.body.len()
        );
        for (name, value) in request.headers.iter().copied().chain(request.tenant.map(|t| ("X-Scope-OrgID", t))) {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(request.body).await?;
        parse(&stream.read_to_end().await?)
    };
    match tokio::time::timeout(timeout, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn parse(bytes: &[u8]) -> io::Result<Answer> {
    let cut_off = || io::Error::new(io::ErrorKind::UnexpectedEof, "the answer is cut off");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(cut_off)?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok()).ok_or_else(cut_off)?;
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let rest = &bytes[end + 4..];
    let body = if header("transfer-encoding").is_some() {
        chunks(rest).ok_or_else(cut_off)?
    } else {
        let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        rest.get(..length).ok_or_else(cut_off)?.to_vec()
    };
    Ok(Answer { status, body })
}

fn chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
        rest = &rest[line + 2..];
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..length)?);
        rest = rest.get(length + 2..)?;
    }
}
