//! Just enough of HTTP to ask a daemon, from inside its network namespace.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::namespace;

/// Where every daemon of the lab answers.
pub const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9586);

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// What came with it.
    pub body: String,
}

/// Asks the daemon in the namespace `name` for `path`.
pub fn get(name: &str, path: &str) -> Result<Answer> {
    let mut stream = namespace::within(name, || {
        TcpStream::connect_timeout(&METRICS, LIMIT).with_context(|| format!("connect to {METRICS} in {name}"))
    })?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {METRICS}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(timely).with_context(|| format!("ask {name} for {path}"))?;
    let mut text = String::new();
    let heard = stream.read_to_string(&mut text).map_err(timely);
    heard.with_context(|| format!("hear {name} about {path}"))?;
    parse(&text).with_context(|| format!("{name} answered about {path} what is not HTTP"))
}

/// A socket's time-out is EAGAIN, which tells nobody anything.
fn timely(error: Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Error::new(ErrorKind::TimedOut, format!("no answer in time ({} s)", LIMIT.as_secs()))
        }
        _ => error,
    }
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    // A sized answer is whole at its end; of a chunked one the sizes would be left in the text.
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (!chunked).then(|| Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_called_one() {
        let error = timely(Error::from(ErrorKind::WouldBlock));
        assert_eq!(error.to_string(), "no answer in time (5 s)");
        assert_eq!(timely(Error::from(ErrorKind::BrokenPipe)).kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn answers_are_taken_apart() {
        let answer =
            parse("HTTP/1.0 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno").expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (503, "no"));
        assert!(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n").is_none());
        assert!(parse("rubbish").is_none());
    }
}
