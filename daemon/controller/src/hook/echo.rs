//! The pod that answers, while `helm test` runs: one a node.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

/// Characters of what is sent and comes back.
pub(super) const WORD: usize = 32;
/// Bytes of the longest line: `ask`, an address and a word.
const LONGEST: u64 = 96;
/// For one question.
const PATIENCE: Duration = Duration::from_secs(5);
/// Askers at one time.
const ASKERS: usize = 16;

/// Answers for ever: `echo WORD` with the word, and `ask ADDRESS WORD` with what the pod of this kind at that address answers.
/// Nobody can have it ask at another port, or with other words than 32 hexadecimal digits.
pub async fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await;
    let listener = match listener {
        Ok(listener) => listener,
        // A node without IPv6.
        Err(_) => {
            TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("listen on port {port}"))?
        }
    };
    let places = Arc::new(Semaphore::new(ASKERS));
    loop {
        let (stream, _) = listener.accept().await.context("accept a connection")?;
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        tokio::spawn(async move {
            // Who asks sees that no answer comes.
            let _ = timeout(PATIENCE, answer(stream, port)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, port: u16) -> Result<()> {
    let (read, mut write) = stream.split();
    let line = line(read).await?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let said = match words[..] {
        ["echo", word] if is_word(word) => word.to_owned(),
        ["ask", address, word] if is_word(word) => {
            ask(address.parse()?, port, &format!("echo {word}"), PATIENCE).await?
        }
        _ => return Ok(()),
    };
    Ok(write.write_all(format!("{said}\n").as_bytes()).await?)
}

/// Asks a pod of this kind, and gives its answer.
pub(super) async fn ask(address: IpAddr, port: u16, what: &str, patience: Duration) -> Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect((address, port)).await?;
        stream.write_all(format!("{what}\n").as_bytes()).await?;
        line(stream).await
    };
    let said = timeout(patience, asked).await.context("no answer in time")??;
    ensure!(is_word(&said), "it answers something else");
    Ok(said)
}

async fn line(from: impl tokio::io::AsyncRead + Unpin) -> Result<String> {
    let mut line = String::new();
    BufReader::new(from.take(LONGEST)).read_line(&mut line).await?;
    Ok(line.trim().to_owned())
}

fn is_word(text: &str) -> bool {
    text.len() == WORD && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_word_comes_back_and_nothing_else_is_done() {
        let port =
            std::net::TcpListener::bind("[::1]:0").and_then(|l| l.local_addr()).expect("a port").port();
        let serving = tokio::spawn(serve(port));
        let word = "0123456789abcdef0123456789abcdef";
        let local: IpAddr = "::1".parse().expect("address");
        let patience = Duration::from_secs(5);
        let mut said = ask(local, port, &format!("echo {word}"), patience).await;
        while said.is_err() && !serving.is_finished() {
            tokio::task::yield_now().await;
            said = ask(local, port, &format!("echo {word}"), patience).await;
        }
        assert_eq!(said.expect("an answer"), word);
        assert_eq!(ask(local, port, &format!("ask ::1 {word}"), patience).await.expect("an answer"), word);
        for bad in ["echo x", "ask ::1 x", "ask x", "", "get /"] {
            assert!(ask(local, port, bad, patience).await.is_err(), "{bad}");
        }
        serving.abort();
    }
}
