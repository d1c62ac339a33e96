//! YAML, as people write objects: its text to values and back.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use serde_saphyr::{Error, Options, UserMessageFormatter, budget, options};

/// All documents of `text` but empty ones. Nothing is guessed: a label's `yes`, `0755` and `1_000` are texts (YAML 1.2, core
/// schema, but for the second).
pub(crate) fn documents(text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple_with_options(text, reading()).map_err(|e| said(&e))
}

/// The only document of `text`.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    // By way of values, so that the reader is compiled for these alone.
    match <[Value; 1]>::try_from(documents(text)?) {
        Ok([value]) => serde_json::from_value(value).map_err(|e| e.to_string()),
        Err(documents) => Err(format!("holds {} objects where one is meant", documents.len())),
    }
}

pub(crate) fn write(object: &impl Serialize) -> Result<String, String> {
    serde_saphyr::to_string(object).map_err(|e| e.to_string())
}

/// In words for those who wrote the text, not the program.
fn said(error: &Error) -> String {
    error.render_with_formatter(&UserMessageFormatter)
}

fn reading() -> Options {
    options! {
        // A list of all Pods is one file. Its size is bounded before it is read; depth and references, which cost more than they are long, are
        // bounded here, by default.
        budget: budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            // One name for what is the same in hundreds of objects is no bomb; what references come to is bounded by itself.
            enforce_alias_anchor_ratio: false,
        },
        emit_comments: false,
        leading_zero_numbers_as_strings: true,
        strict_booleans: true,
        underscored_numbers_as_strings: true,
        // An error is one line, and repeats nothing of the file.
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_is_guessed() {
        let text = "{a: yes, b: on, c: 0755, d: 1_000, e: 'true', f: true, g: 7, h: ~}";
        let read = json!({
            "a": "yes", "b": "on", "c": "0755", "d": "1_000", "e": "true", "f": true, "g": 7, "h": null
        });
        assert_eq!(documents(text), Ok(vec![read.clone()]));
        assert_eq!(super::read(&write(&read).expect("YAML")), Ok(read));
    }

    /// A file that is small and costs much to read is refused, and one that is large is not.
    #[test]
    fn size_is_no_matter_and_depth_is() {
        const MANY: usize = 300_000;
        let read = documents(&"- a\n".repeat(MANY)).expect("a long list");
        assert_eq!(read[0].as_array().map(Vec::len), Some(MANY));
        let bomb: String =
            (1..12).map(|n| format!("a{n}: &a{n} [{}]\n", format!("*a{},", n - 1).repeat(10))).collect();
        for text in
            ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000), format!("a0: &a0 x\n{bomb}")]
        {
            documents(&text).expect_err("too much");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        let cases = [
            ("a: b: c", "mapping values are not allowed in this context"),
            ("a: 1\na: 2", "duplicate mapping key `a`"),
            ("a:\n\t- b", "tabs disallowed"),
            ("a: .inf", "is not a finite number"),
            ("a: [", "unclosed bracket"),
        ];
        for (text, says) in cases {
            let why = documents(text).expect_err(text);
            assert!(why.contains(says) && why.contains("at line ") && !why.contains('\n'), "{why}");
            assert!(!why.contains("Options") && !why.contains("Policy"), "{why}");
        }
    }
}
