//! Label selectors, with Kubernetes' own meaning (`metav1.LabelSelector`).

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::words::words;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Which objects are meant, by their labels: those for which all of it holds. An empty one means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LabelSelector {
    /// Labels that an object has with just this value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: Labels,
    /// What else holds of its labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 32)))]
    pub match_expressions: Vec<Requirement>,
}

/// What holds of one label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-validations" = crate::crd::requirement())))]
pub struct Requirement {
    /// Its key.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 317)))]
    pub key: String,
    /// What.
    pub operator: Operator,
    /// Values: some for In and NotIn, none for Exists and DoesNotExist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub values: Vec<String>,
}

words! {
    /// What may hold of a label.
    pub enum Operator {
        /// It is there, and its value is one of those named.
        In = "In",
        /// It is not there, or its value is none of those named.
        NotIn = "NotIn",
        /// It is there.
        Exists = "Exists",
        /// It is not there.
        DoesNotExist = "DoesNotExist",
    }
}

impl LabelSelector {
    /// Does it ask for nothing, so that everybody is meant?
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Is an object with these labels meant?
    pub fn selects(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    /// `apimachinery/pkg/labels/selector.go`, `Requirement.Matches`.
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let is_named = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => is_named,
            Operator::NotIn => !is_named,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// As `kubectl --selector` has it: requirements with commas between them.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equal = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let more = self.match_expressions.iter().map(|requirement| {
            let Requirement { key, values, .. } = requirement;
            match requirement.operator {
                Operator::In => format!("{key} in ({})", values.join(",")),
                Operator::NotIn => format!("{key} notin ({})", values.join(",")),
                Operator::Exists => key.clone(),
                Operator::DoesNotExist => format!("!{key}"),
            }
        });
        f.write_str(&equal.chain(more).collect::<Vec<_>>().join(","))
    }
}

/// A text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no requirement of labels, such as pool=a, pool!=a, pool, !pool, pool in (a,b) or pool notin (a,b)"
)]
pub struct NoSelector(String);

impl FromStr for LabelSelector {
    type Err = NoSelector;

    /// Reads what `kubectl --selector` does.
    fn from_str(text: &str) -> Result<Self, NoSelector> {
        let mut selector = Self::default();
        if text.trim().is_empty() {
            return Ok(selector);
        }
        for part in parts(text) {
            let no = || NoSelector(part.to_owned());
            let (key, operator, values) = requirement(part).ok_or_else(no)?;
            let key = key.trim();
            let values: Vec<String> = values.map(|value| value.trim().to_owned()).collect();
            if !is_key(key) || !values.iter().all(|value| is_value(value)) {
                return Err(no());
            }
            // `a=b,a=c` holds of nothing, so both stay.
            let is_new = !selector.match_labels.contains_key(key);
            match (&values[..], operator) {
                ([value], Operator::In) if is_new => {
                    selector.match_labels.insert(key.to_owned(), value.clone());
                }
                _ => selector.match_expressions.push(Requirement { key: key.to_owned(), operator, values }),
            }
        }
        Ok(selector)
    }
}

/// Between commas that stand in no parentheses.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let parts = text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim)
}

/// Key, operator and values of one requirement.
fn requirement(part: &str) -> Option<(&str, Operator, std::str::Split<'_, char>)> {
    let none = || {
        let mut none = "".split(',');
        none.next();
        none
    };
    if let Some(list) = part.strip_suffix(')') {
        let (words, values) = list.split_once('(')?;
        let (key, word) = words.trim().rsplit_once(char::is_whitespace)?;
        let operator = match word {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            _ => return None,
        };
        return Some((key, operator, values.split(',')));
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Some((key, Operator::NotIn, value.split(',')));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some((key, Operator::In, value.split(',')));
    }
    Some(match part.strip_prefix('!') {
        Some(key) => (key, Operator::DoesNotExist, none()),
        None => (part, Operator::Exists, none()),
    })
}

/// Characters of a label's value, or of the name in its key (RFC 1123 and `validation.go`, `qualifiedNameFmt`); which may stand where
/// is for the API server to check.
fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_value(text: &str) -> bool {
    text.len() <= 63 && is_word(text)
}

fn is_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').unwrap_or(("", text));
    (1..=63).contains(&name.len()) && is_word(name) && prefix.len() <= 253 && is_word(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn it_selects_as_kubernetes_does() {
        let node = labels(&[("pool", "a"), ("kubernetes.io/os", "linux"), ("empty", "")]);
        for (text, is_meant) in [
            ("", true),
            ("pool=a", true),
            ("pool==a", true),
            ("pool=b", false),
            ("pool!=a", false),
            ("pool!=b", true),
            ("absent!=b", true),
            ("absent=", false),
            ("empty=", true),
            ("pool", true),
            ("absent", false),
            ("!absent", true),
            ("!pool", false),
            ("pool in (b, a)", true),
            ("pool in (b)", false),
            ("pool notin (a,b)", false),
            ("absent notin (a)", true),
            ("absent in (a)", false),
            ("kubernetes.io/os=linux,pool in (a,b),!absent", true),
            ("kubernetes.io/os=linux,pool in (a,b),absent", false),
            ("pool=a,pool=b", false),
        ] {
            let selector: LabelSelector = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.selects(&node), is_meant, "{text}");
            let again: LabelSelector = selector.to_string().parse().expect("what is written is read");
            if !text.is_empty() {
                assert_eq!(again.selects(&node), is_meant, "{text}: {selector}");
            }
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in
            ["=a", "pool=a=b", "pool in a", "pool is (a)", "pool=a,,b", "!", "pool=a b", "a/b/c", "(a)"]
        {
            assert!(text.parse::<LabelSelector>().is_err(), "{text}");
        }
    }
}
