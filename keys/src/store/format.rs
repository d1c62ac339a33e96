//! The text of a key file. Errors name a line and repeat nothing: any line might hold the secret.

use std::str;

use zeroize::Zeroizing;

use super::{KeyInfo, Problem};
use crate::{Generation, PrivateKey, text};

/// Version of the format.
pub(super) const VERSION: u32 = 1;
/// No key file is longer; bytes. The longest has a UID of 128 characters and comes to 322.
pub(super) const LIMIT: usize = 1024;

const MAGIC: &str = "kubeveil key ";
const NODE_UID: &str = "node-uid: ";
const GENERATION: &str = "generation: ";
const CREATED: &str = "created: ";
const PUBLIC: &str = "public-key: ";
const PRIVATE: &str = "private-key: ";

/// Whether `text` can be a node's UID: it stands on a line of its own.
pub(super) fn is_node_uid(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// The content of a key file.
pub(super) fn render(node_uid: &str, info: &KeyInfo, private: &PrivateKey) -> Zeroizing<Vec<u8>> {
    let KeyInfo { generation, public, created } = info;
    let head = format!(
        "{MAGIC}{VERSION}\n{NODE_UID}{node_uid}\n{GENERATION}{generation}\n{CREATED}{created}\n{PUBLIC}{public}\n{PRIVATE}"
    );
    let mut content = Zeroizing::new(Vec::with_capacity(LIMIT));
    content.extend_from_slice(head.as_bytes());
    private.expose(|bytes| text::encode_key_into(bytes, &mut content));
    content.push(b'\n');
    content
}

/// Reads the content of the file of `generation` on the node `node_uid`.
pub(super) fn parse(
    content: &[u8],
    node_uid: &str,
    generation: Generation,
) -> Result<(PrivateKey, KeyInfo), Problem> {
    if content.len() > LIMIT {
        return Err(Problem::NotAKey { line: 1 });
    }
    let mut lines = Lines { rest: content, line: 0 };
    // The version first: what follows it may look different in another one.
    match lines.number(MAGIC)? {
        VERSION => {}
        found => return Err(Problem::OtherVersion { found }),
    }
    let found_uid = lines.text(NODE_UID)?;
    if !is_node_uid(found_uid) {
        return Err(lines.wrong());
    }
    let found_generation = Generation::new(lines.number(GENERATION)?);
    let created = lines.number(CREATED)?;
    let public = lines.text(PUBLIC)?.parse().map_err(|_| lines.wrong())?;
    let private = PrivateKey::from_base64(lines.field(PRIVATE)?).ok_or_else(|| lines.wrong())?;
    lines.end()?;
    if private.public() != public {
        return Err(Problem::Mismatch);
    }
    if found_uid != node_uid {
        return Err(Problem::OtherNode { expected: node_uid.to_owned() });
    }
    if found_generation != generation {
        return Err(Problem::OtherGeneration { found: found_generation });
    }
    Ok((private, KeyInfo { generation, public, created }))
}

/// Lines of a known order.
struct Lines<'a> {
    rest: &'a [u8],
    /// The current one, counted from 1.
    line: usize,
}

impl<'a> Lines<'a> {
    /// The value of the next line, which must begin with `name`.
    fn field(&mut self, name: &str) -> Result<&'a [u8], Problem> {
        self.line += 1;
        let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') else {
            let begun = self.rest.len().min(name.len());
            let cut = self.rest[..begun] == name.as_bytes()[..begun];
            return Err(if cut { Problem::Truncated } else { self.wrong() });
        };
        let (line, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        line.strip_prefix(name.as_bytes()).ok_or_else(|| self.wrong())
    }

    fn text(&mut self, name: &str) -> Result<&'a str, Problem> {
        let value = self.field(name)?;
        str::from_utf8(value).map_err(|_| self.wrong())
    }

    /// A number as `Display` writes it: no sign, no leading zero.
    fn number<N: str::FromStr + ToString>(&mut self, name: &str) -> Result<N, Problem> {
        let text = self.text(name)?;
        let number: N = text.parse().map_err(|_| self.wrong())?;
        if number.to_string() == text { Ok(number) } else { Err(self.wrong()) }
    }

    fn end(&self) -> Result<(), Problem> {
        if self.rest.is_empty() { Ok(()) } else { Err(Problem::NotAKey { line: self.line + 1 }) }
    }

    const fn wrong(&self) -> Problem {
        Problem::NotAKey { line: self.line }
    }
}
