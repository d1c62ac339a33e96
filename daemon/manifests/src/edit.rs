//! Changes an object in its YAML text, so that what people wrote around it stays: comments, order, quotes.

use std::ops::Range;

use serde_json::Value;

use crate::yaml;

/// `text`, one document, after a JSON merge patch (RFC 7386). Where the text is written in a way in which a few lines can't be
/// changed by themselves, the whole of it is written anew.
pub(crate) fn edited(text: &str, patch: &Value) -> Result<String, String> {
    let mut wanted: Value = yaml::read(text)?;
    json_patch::merge(&mut wanted, patch);
    let in_place = in_place(text, patch, &wanted);
    // It is what was wanted, or it is not taken.
    let is_right = |text: &String| yaml::read(text).is_ok_and(|value: Value| value == wanted);
    match in_place.filter(is_right) {
        Some(text) => Ok(text),
        None => yaml::write(&wanted),
    }
}

/// Changes the lines of those fields that the patch speaks of: fields of the object, and of its `spec`.
fn in_place(text: &str, patch: &Value, wanted: &Value) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (field, change) in patch.as_object()? {
        match change.as_object().filter(|_| field == "spec") {
            Some(fields) => {
                for inner in fields.keys() {
                    let spec = block(&lines, 0..lines.len(), 0, "spec")?;
                    let inside = spec.start + 1..spec.end;
                    let indent =
                        lines[inside.clone()].iter().find(|line| is_content(line)).map(|line| depth(line))?;
                    put(&mut lines, inside, indent, inner, &wanted["spec"][inner])?;
                }
            }
            None => {
                let all = 0..lines.len();
                put(&mut lines, all, 0, field, &wanted[field])?;
            }
        }
    }
    Some(lines.join("\n") + "\n")
}

/// Puts `value` where `key` stands among the lines `within`, or behind them all; `null` takes it away.
fn put(lines: &mut Vec<String>, within: Range<usize>, indent: usize, key: &str, value: &Value) -> Option<()> {
    let mut new = Vec::new();
    if !value.is_null() {
        let object = Value::Object([(key.to_owned(), value.clone())].into_iter().collect());
        let text = yaml::write(&object).ok()?;
        new.extend(text.lines().map(|line| format!("{:indent$}{line}", "")));
    }
    let place = block(lines, within.clone(), indent, key).unwrap_or_else(|| {
        let end = lines[within.clone()].iter().rposition(|line| is_content(line));
        let end = within.start + end.map_or(0, |last| last + 1);
        end..end
    });
    lines.splice(place, new);
    Some(())
}

/// The lines of `key` at this depth, with what belongs to it.
fn block(lines: &[String], within: Range<usize>, indent: usize, key: &str) -> Option<Range<usize>> {
    let is_key = |line: &String| {
        depth(line) == indent && line[indent..].strip_prefix(key).is_some_and(|rest| rest.starts_with(':'))
    };
    let start = within.start + lines[within.clone()].iter().position(is_key)?;
    let is_inside = |line: &String| {
        let depth = depth(line);
        // The items of a list may stand as deep as its name.
        depth > indent || (depth == indent && line[indent..].starts_with("- "))
    };
    let mut end = start + 1;
    for (at, line) in lines.iter().enumerate().take(within.end).skip(start + 1) {
        if is_content(line) {
            if !is_inside(line) {
                break;
            }
            end = at + 1;
        }
    }
    Some(start..end)
}

/// Neither empty nor a comment.
fn is_content(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with('#')
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = "\
# What we want.
kind: EncryptionMesh
spec:
    mode: require # always
    # Raised by hand.
    keyGeneration: 1
    revokedKeys:
    - one
    rotation:
        reason: before

    podCIDRs: [10.0.0.0/8]
# The end.
";

    #[test]
    fn a_few_lines_change_and_the_rest_stands() {
        let patch = json!({
            "spec": {"keyGeneration": 2, "rotation": {"reason": null, "paused": true}, "revokedKeys": ["one", "two"]},
            "status": {"nodes": 3},
        });
        let text = edited(TEXT, &patch).expect("changed");
        assert_eq!(
            text,
            "\
# What we want.
kind: EncryptionMesh
spec:
    mode: require # always
    # Raised by hand.
    keyGeneration: 2
    revokedKeys:
    - one
    - two
    rotation:
      paused: true

    podCIDRs: [10.0.0.0/8]
status:
  nodes: 3
# The end.
"
        );
        let text = edited(&text, &json!({"spec": {"rotation": null}, "status": null})).expect("changed");
        assert!(
            !text.contains("rotation") && !text.contains("status") && text.contains("# always"),
            "{text}"
        );
        // What was never there comes last.
        let text = edited("kind: A\nspec:\n  b: 1\n\n# c\n", &json!({"spec": {"d": 2}})).expect("changed");
        assert_eq!(text, "kind: A\nspec:\n  b: 1\n  d: 2\n\n# c\n");
    }

    /// However it is written, what comes out is what was wanted.
    #[test]
    fn any_way_of_writing_is_taken() {
        let texts = [
            "{kind: A, spec: {b: 1}}",
            "kind: A\nspec: {b: 1}\n",
            "kind: A\n\"spec\":\n  b: 1\n",
            "kind: A\nspec:\n  b: |\n    d: 7\n    e: 8\n",
            "kind: A\nspec:\n  {b: 1,\n  d: 3}\n",
            "kind: A\n",
        ];
        for text in texts {
            let patch = json!({"spec": {"d": 2}});
            let mut wanted: Value = yaml::read(text).expect("YAML");
            json_patch::merge(&mut wanted, &patch);
            let got: Value = yaml::read(&edited(text, &patch).expect("changed")).expect("YAML");
            assert_eq!(got, wanted, "{text}");
        }
    }
}
