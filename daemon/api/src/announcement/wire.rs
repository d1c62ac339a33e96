//! The JSON of an announcement.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;

use kubeveil_keys::{Generation, PublicKey, Signature};
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Announcement, AnnouncementError, FieldProblem, GenerationEntry, GenerationState, MAX_BYTES, NotFlipped,
    VERSION,
};

/// Characters of a message about somebody else's JSON that are kept.
const MESSAGE: usize = 200;

/// Read first: what else there is depends on it.
#[derive(Deserialize)]
struct Version {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    version: u32,
    generations: Vec<WireEntry>,
    not_flipped: NotFlipped,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireEntry {
    generation: Generation,
    public_key: PublicKey,
    port: NonZeroU16,
    state: GenerationState,
    signature: Signature,
}

pub(super) fn render(announcement: &Announcement) -> String {
    let entry = |(entry, &signature): (&GenerationEntry, _)| {
        let &GenerationEntry { generation, public_key, port, state } = entry;
        WireEntry { generation, public_key, port, state, signature }
    };
    let wire = Wire {
        version: VERSION,
        generations: announcement.generations.iter().zip(&announcement.signatures).map(entry).collect(),
        not_flipped: announcement.not_flipped.clone(),
    };
    // Numbers and texts only, and no map: there is nothing that could fail.
    serde_json::to_string(&wire).unwrap_or_default()
}

/// Reads JSON into an announcement that nobody has verified.
pub(super) fn parse(json: &str) -> Result<Announcement, AnnouncementError> {
    if json.len() > MAX_BYTES {
        return Err(AnnouncementError::TooLarge { bytes: json.len() });
    }
    let Version { version } = read(json)?;
    if version != u64::from(VERSION) {
        return Err(AnnouncementError::Version(version));
    }
    let wire: Wire = read(json)?;
    let mut announcement =
        Announcement { generations: Vec::new(), not_flipped: wire.not_flipped, signatures: Vec::new() };
    for WireEntry { generation, public_key, port, state, signature } in wire.generations {
        announcement.generations.push(GenerationEntry { generation, public_key, port, state });
        announcement.signatures.push(signature);
    }
    Ok(announcement)
}

fn read<T: DeserializeOwned>(json: &str) -> Result<T, AnnouncementError> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| malformed(&error.path().to_string(), error.inner()))?;
    deserializer.end().map_err(|error| malformed(".", &error))?;
    Ok(value)
}

/// Another node wrote the JSON, and serde repeats some of it: no control characters, no pages of it.
fn malformed(path: &str, error: &serde_json::Error) -> AnnouncementError {
    let clean = |text: &str| text.chars().take(MESSAGE).collect::<String>().escape_debug().to_string();
    let field = if path == "." { "announcement".to_owned() } else { clean(path) };
    // Quotes are no danger, and messages are full of them.
    let message = clean(&error.to_string()).replace("\\\"", "\"").replace("\\'", "'");
    AnnouncementError::field(field, FieldProblem::Malformed(message))
}

impl Serialize for NotFlipped {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nodes(names) => serializer.collect_seq(names),
            Self::Many => serializer.serialize_str("many"),
        }
    }
}

impl<'de> Deserialize<'de> for NotFlipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NamesOrMany;
        impl<'de> Visitor<'de> for NamesOrMany {
            type Value = NotFlipped;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of node names, or \"many\"")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<NotFlipped, E> {
                match word {
                    "many" => Ok(NotFlipped::Many),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<NotFlipped, A::Error> {
                let mut names = BTreeSet::new();
                while let Some(name) = seq.next_element::<String>()? {
                    if !names.insert(name) {
                        return Err(serde::de::Error::custom("a node is listed twice"));
                    }
                }
                Ok(NotFlipped::Nodes(names))
            }
        }
        deserializer.deserialize_any(NamesOrMany)
    }
}
