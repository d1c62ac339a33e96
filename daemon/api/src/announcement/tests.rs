use proptest::prelude::*;

use super::*;

const NODE: &str = "node-1";
const UID: &str = "0b5c8f0e-27a7-4b0f-9c5f-0a3ad0c9b0f1";

fn key(number: u8) -> PrivateKey {
    PrivateKey::copied_from(&[number; 32])
}

fn entry(generation: u32, key: &PrivateKey) -> GenerationEntry {
    let generation = Generation::new(generation);
    let port = generation.port(51_871).and_then(NonZeroU16::new).expect("a port");
    GenerationEntry { generation, public_key: key.public(), port, state: GenerationState::Active }
}

/// Two generations of [`NODE`], the older one retiring, with two peers that still get their packets by it.
fn two_generations() -> Announcement {
    let (old, new) = (key(3), key(6));
    let retiring = GenerationEntry { state: GenerationState::Retiring, ..entry(4, &old) };
    let not_flipped = NotFlipped::of(["node-3".to_owned(), "node-2".to_owned()]);
    Announcement::sign(NODE, UID, vec![entry(5, &new), retiring], not_flipped, &[&new, &old]).expect("signed")
}

fn one_generation() -> String {
    let key = key(1);
    Announcement::sign(NODE, UID, vec![entry(0, &key)], NotFlipped::nobody(), &[&key])
        .expect("signed")
        .to_json()
}

fn verify(json: &str) -> Result<Announcement, AnnouncementError> {
    Announcement::parse_and_verify(json, NODE, UID)
}

/// The field that is refused, and why.
fn refused(json: &str) -> (String, FieldProblem) {
    match verify(json) {
        Err(AnnouncementError::Field { field, problem }) => (field, problem),
        other => panic!("{json}: {other:?}"),
    }
}

fn altered(json: &str, from: &str, to: &str) -> String {
    assert_eq!(json.matches(from).count(), 1, "{from} in {json}");
    json.replace(from, to)
}

fn signature(index: usize) -> (String, FieldProblem) {
    (format!("generations[{index}].signature"), FieldProblem::Signature)
}

/// Signed by the specification's pseudo code in Python, over a statement built there: private key 32 times 3.
const PINNED: &str = concat!(
    r#"{"version":1,"generations":[{"generation":4,"publicKey":"Xf7dO2vUf2+ijuFdlp1bsOpTd01Ii9r53xxuASSz7yI=","#,
    r#""port":51871,"state":"active","signature":"wnJSI5bS2fIKMW1ZYiv+ooPv1Ug4qOoJMjiTlnAM3b4S0J5P7uI2I5Z2V9xrueyy5sii/w6NMffctzctVdiOBQ=="}],"notFlipped":["node-2","node-3"]}"#,
);

#[test]
fn an_announcement_made_elsewhere_verifies() {
    let announcement = verify(PINNED).expect("verifies");
    assert_eq!(announcement.generations(), [entry(4, &key(3))]);
    assert_eq!(*announcement.not_flipped(), NotFlipped::of(["node-2".to_owned(), "node-3".to_owned()]));
    assert_eq!(announcement.to_json(), PINNED);
}

#[test]
fn the_statement_is_pinned() {
    let retiring = GenerationEntry { state: GenerationState::Retiring, ..entry(4, &key(3)) };
    let key_3: &[u8] = &hex("5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22");
    let key_6: &[u8] = &hex("f5b2d6e60f9477e310c2982daaa6c9136c108a1777c5947e448fa37d68174557");
    let expected = [
        b"\0\0\0\x15kubeveil announcement\0\0\0\x01\0\0\0\x06node-1".as_slice(),
        b"\0\0\0\x240b5c8f0e-27a7-4b0f-9c5f-0a3ad0c9b0f1\0\0\0\x02",
        b"\0\0\0\x04\0\0\0\x20",
        key_3,
        b"\0\0\xca\x9f\0\0\0\x08retiring",
        b"\0\0\0\x05\0\0\0\x20",
        key_6,
        b"\0\0\xca\xa0\0\0\0\x06active",
    ]
    .concat();
    let generations = [retiring, entry(5, &key(6))];
    let nodes = NotFlipped::of(["b".to_owned(), "a".to_owned()]);
    let listed = [expected.as_slice(), b"\0\0\0\x05nodes\0\0\0\x02\0\0\0\x01a\0\0\0\x01b"].concat();
    assert_eq!(statement(NODE, UID, &generations, &nodes), listed);
    let many = [expected.as_slice(), b"\0\0\0\x04many"].concat();
    assert_eq!(statement(NODE, UID, &generations, &NotFlipped::Many), many);
}

#[test]
fn what_was_signed_is_read_back_in_order() {
    let announcement = two_generations();
    let read = verify(&announcement.to_json()).expect("verifies");
    assert_eq!(read, announcement);
    let numbers: Vec<_> = read.generations().iter().map(|entry| entry.generation.number()).collect();
    assert_eq!(numbers, [4, 5]);
    assert!(read.says(announcement.generations(), announcement.not_flipped()));
    assert!(!read.says(announcement.generations(), &NotFlipped::Many));
    assert!(!read.says(&announcement.generations()[..1], announcement.not_flipped()));
}

#[test]
fn copied_to_another_node_it_is_refused() {
    let json = one_generation();
    let error = Announcement::parse_and_verify(&json, "node-2", UID).expect_err("another node's");
    assert_eq!(
        error.to_string(),
        "generations[0].signature: the signature does not fit key, node name, node UID and content: \
         altered, or copied from another node"
    );
}

#[test]
fn replayed_under_another_uid_it_is_refused() {
    let uid = "9f1e5b52-90b5-4b2a-8a4d-5b1f6b7d3c11";
    let error = Announcement::parse_and_verify(&one_generation(), NODE, uid).expect_err("of the node before");
    let (field, problem) = signature(0);
    assert_eq!(error, AnnouncementError::Field { field, problem });
}

/// Name and UID are told apart: moving a character from one to the other changes the statement.
#[test]
fn the_border_between_name_and_uid_is_signed() {
    let json = one_generation();
    let shifted = (format!("{NODE}0"), &UID[1..]);
    assert!(Announcement::parse_and_verify(&json, &shifted.0, shifted.1).is_err());
}

#[test]
fn with_another_port_it_is_refused() {
    assert_eq!(refused(&altered(&one_generation(), "51871", "51872")), signature(0));
}

#[test]
fn with_another_generation_it_is_refused() {
    assert_eq!(refused(&altered(&one_generation(), r#""generation":0"#, r#""generation":2"#)), signature(0));
}

#[test]
fn with_another_state_it_is_refused() {
    assert_eq!(refused(&altered(&one_generation(), "active", "retiring")), signature(0));
}

#[test]
fn with_others_not_flipped_it_is_refused() {
    let json = two_generations().to_json();
    for (from, to) in [
        (r#"["node-2","node-3"]"#, "[]"),
        (r#","node-3""#, ""),
        ("node-3", "node-4"),
        (r#"["node-2","node-3"]"#, r#""many""#),
    ] {
        assert_eq!(refused(&altered(&json, from, to)), signature(0));
    }
}

#[test]
fn with_a_key_swapped_it_is_refused() {
    let mallory = key(9).public().to_string();
    assert_eq!(refused(&altered(&one_generation(), &key(1).public().to_string(), &mallory)), signature(0));
    // Both keys are the node's own, but each for its generation.
    let (one, two) = (key(3).public().to_string(), key(6).public().to_string());
    let json = two_generations().to_json().replace(&one, "@").replace(&two, &one).replace('@', &two);
    assert_eq!(refused(&json), signature(0));
}

#[test]
fn with_a_generation_added_or_left_out_it_is_refused() {
    let whole = two_generations();
    let mallory = key(9);
    let added = Announcement {
        generations: [whole.generations(), &[entry(6, &mallory)]].concat(),
        signatures: [whole.signatures.as_slice(), &[mallory.sign(b"anything")]].concat(),
        ..whole.clone()
    };
    assert_eq!(refused(&added.to_json()), signature(0));
    let left_out = Announcement {
        generations: whole.generations[..1].to_vec(),
        signatures: whole.signatures[..1].to_vec(),
        not_flipped: whole.not_flipped,
    };
    assert_eq!(refused(&left_out.to_json()), signature(0));
}

/// A node that names another's key beside its own: every key has to sign.
#[test]
fn anothers_key_beside_ones_own_is_refused() {
    let (own, victim) = (key(1), key(2));
    let generations = vec![entry(0, &own), entry(1, &victim)];
    let statement = statement(NODE, UID, &generations, &NotFlipped::nobody());
    let signatures = vec![own.sign(&statement), own.sign(&statement)];
    let forged = Announcement { generations, not_flipped: NotFlipped::nobody(), signatures };
    assert_eq!(refused(&forged.to_json()), signature(1));
}

#[test]
fn a_key_by_which_anybody_can_sign_is_refused() {
    let low = GenerationEntry { public_key: PublicKey::from_bytes([0; 32]), ..entry(0, &key(1)) };
    let forged = Announcement {
        generations: vec![low],
        not_flipped: NotFlipped::nobody(),
        signatures: vec![Signature::from_bytes([0; 64])],
    };
    assert_eq!(
        refused(&forged.to_json()),
        ("generations[0].publicKey".to_owned(), FieldProblem::UnusableKey)
    );
}

#[test]
fn an_unknown_version_is_reported_whatever_follows() {
    for version in [0, 2, u64::MAX] {
        let json = format!(r#"{{"keys":"in another way","version":{version}}}"#);
        assert_eq!(verify(&json), Err(AnnouncementError::Version(version)));
    }
    assert_eq!(
        AnnouncementError::Version(2).to_string(),
        "announcement of version 2: this program knows version 1; are the nodes of one release?"
    );
}

#[test]
fn what_is_malformed_is_named() {
    let json = one_generation();
    let cases = [
        ("", "announcement", "EOF while parsing"),
        ("{}", "announcement", "missing field `version`"),
        (r#"{"version":"1"}"#, "version", "invalid type: string"),
        (r#"{"version":1}"#, "announcement", "missing field `generations`"),
        (&format!("{json}{json}"), "announcement", "trailing characters"),
        (
            &altered(&json, r#""version":1"#, r#""version":1,"version":1"#),
            "announcement",
            "duplicate field `version`",
        ),
        (&altered(&json, r#""notFlipped""#, r#""extra":1,"notFlipped""#), "extra", "unknown field `extra`"),
        (&altered(&json, r#""state""#, r#""mtu":1,"state""#), "generations[0].mtu", "unknown field `mtu`"),
        (&altered(&json, "51871", "0"), "generations[0].port", "nonzero u16"),
        (&altered(&json, "51871", "65536"), "generations[0].port", "invalid value"),
        (&altered(&json, "active", "dormant"), "generations[0].state", "unknown variant `dormant`"),
        (
            &altered(&json, r#""generation":0"#, r#""generation":-1"#),
            "generations[0].generation",
            "invalid value",
        ),
        (&altered(&json, "ogk=", "ogk"), "generations[0].publicKey", "not a WireGuard public key"),
        (
            &altered(&json, r#""signature":""#, r#""signature":"AA"#),
            "generations[0].signature",
            "not a signature",
        ),
        (&altered(&json, r#"[]}"#, r#""few"}"#), "notFlipped", "a list of node names, or"),
        (&altered(&json, r#"[]}"#, r#"["a","a"]}"#), "notFlipped", "a node is listed twice"),
        (&altered(&json, r#"[]}"#, r#"[7]}"#), "notFlipped[0]", "invalid type"),
    ];
    for (json, wanted, message) in cases {
        let (field, problem) = refused(json);
        assert_eq!(field, wanted, "{json}: {problem}");
        assert!(problem.to_string().contains(message), "{json}: {problem}");
    }
}

#[test]
fn what_others_wrote_cannot_forge_lines_of_a_log() {
    let long = "x".repeat(4000);
    let (field, problem) = refused(&format!(r#"{{"version":1,"a\n\u001b[31mforged":1,"{long}":1}}"#));
    let text = format!("{field}: {problem}");
    assert!(!text.chars().any(char::is_control), "{text}");
    let (field, problem) = refused(&format!(r#"{{"version":1,"{long}":1}}"#));
    assert!(field.len() + problem.to_string().len() < 1000);
}

#[test]
fn limits_hold() {
    let json = one_generation();
    let padded = format!("{json}{}", " ".repeat(MAX_BYTES - json.len()));
    assert!(verify(&padded).is_ok());
    let bytes = MAX_BYTES + 1;
    assert_eq!(verify(&format!("{padded} ")), Err(AnnouncementError::TooLarge { bytes }));

    let none = r#"{"version":1,"generations":[],"notFlipped":[]}"#;
    assert_eq!(refused(none), ("generations".to_owned(), FieldProblem::NoGeneration));

    let keys: Vec<_> = (1..=5).map(key).collect();
    let sign = |generations: &[u32], keys: &[&PrivateKey], not_flipped| {
        let entries = generations.iter().zip(keys).map(|(&generation, key)| entry(generation, key)).collect();
        Announcement::sign(NODE, UID, entries, not_flipped, keys).map(|announcement| announcement.to_json())
    };
    let field = |field: &str, problem| Err(AnnouncementError::field(field, problem));
    let all: Vec<_> = keys.iter().collect();
    let four = sign(&[0, 1, 2, 3], &all[..4], NotFlipped::Many).expect("four");
    assert!(verify(&four).is_ok());
    let five = sign(&[0, 1, 2, 3, 4], &all, NotFlipped::Many);
    assert_eq!(five, field("generations", FieldProblem::TooManyGenerations(5)));
    let twice = sign(&[1, 1], &all[..2], NotFlipped::Many);
    assert_eq!(twice, field("generations[1].generation", FieldProblem::NotAscending));
    // A node that a rotation leaves out has one key for both.
    let same_key = sign(&[1, 2], &[all[0], all[0]], NotFlipped::Many).expect("one key");
    assert!(verify(&same_key).is_ok());
    let names: BTreeSet<_> = (0..33).map(|number| format!("node-{number}")).collect();
    let long_list = sign(&[1], &all[..1], NotFlipped::Nodes(names));
    assert_eq!(long_list, field("notFlipped", FieldProblem::TooManyNames(33)));
    let strange = sign(&[1], &all[..1], NotFlipped::of(["no node".to_owned()]));
    assert_eq!(strange, field("notFlipped", FieldProblem::NotAName));
}

#[test]
fn a_generation_without_its_private_key_is_not_signed() {
    let (own, other) = (key(1), key(2));
    let error = Announcement::sign(NODE, UID, vec![entry(0, &own)], NotFlipped::nobody(), &[&other]);
    assert_eq!(error, Err(AnnouncementError::field("generations[0].publicKey", FieldProblem::NoPrivateKey)));
}

#[test]
fn the_longest_list_of_names_fits() {
    let longest = (0..16).map(|number| format!("{number:x}{}", "n".repeat(252)));
    let not_flipped = NotFlipped::of(longest.clone());
    assert!(matches!(&not_flipped, NotFlipped::Nodes(names) if names.len() == 16));
    let keys: Vec<_> = (1..=4).map(key).collect();
    let keys: Vec<_> = keys.iter().collect();
    let entries = (0..4).map(|number| entry(u32::MAX - number, keys[number as usize])).collect();
    let announcement = Announcement::sign(NODE, UID, entries, not_flipped, &keys).expect("signed");
    assert!(announcement.to_json().len() <= MAX_BYTES, "{}", announcement.to_json().len());

    assert_eq!(NotFlipped::of(longest.chain(["one-more".repeat(31)])), NotFlipped::Many);
    assert_eq!(NotFlipped::of((0..33).map(|number| number.to_string())), NotFlipped::Many);
    let listed = NotFlipped::of((0..32).chain(0..32).map(|number| number.to_string()));
    assert!(matches!(&listed, NotFlipped::Nodes(names) if names.len() == 32));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_flipped_byte_is_refused(at: prop::sample::Index, flip in 1..=127_u8) {
        let json = two_generations().to_json();
        let mut bytes = json.clone().into_bytes();
        bytes[at.index(json.len())] ^= flip;
        prop_assert!(verify(&String::from_utf8(bytes).expect("ASCII")).is_err());
    }

    /// The statement is what the keys sign: nothing of it can be altered.
    #[test]
    fn a_flipped_byte_of_the_statement_is_refused(at: prop::sample::Index, flip in 1..=255_u8) {
        let announcement = two_generations();
        let mut bytes = statement(NODE, UID, announcement.generations(), announcement.not_flipped());
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        for (entry, signature) in announcement.generations().iter().zip(&announcement.signatures) {
            prop_assert_eq!(entry.public_key.verify(&bytes, signature), Err(VerifyError::Mismatch));
        }
    }

    #[test]
    fn whatever_is_signed_is_read_back(
        name in "[a-z0-9.-]{1,60}", uid in "[a-f0-9-]{1,36}", first in 0..u32::MAX - 4, count in 1..=4_u8,
        port in 1..=u16::MAX, retiring: bool, names in prop::collection::btree_set("[a-z0-9.-]{1,40}", 0..40),
    ) {
        let keys: Vec<_> = (1..=count).map(key).collect();
        let state = if retiring { GenerationState::Retiring } else { GenerationState::Active };
        let port = NonZeroU16::new(port).expect("not zero");
        let entries = (first..).zip(&keys).map(|(number, key)| {
            GenerationEntry { generation: Generation::new(number), public_key: key.public(), port, state }
        });
        let keys: Vec<_> = keys.iter().collect();
        let signed = Announcement::sign(&name, &uid, entries.collect(), NotFlipped::of(names), &keys).expect("signed");
        prop_assert_eq!(Announcement::parse_and_verify(&signed.to_json(), &name, &uid), Ok(signed));
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}
