//! What is told of a rotation to those who were not there: the controller's events, on a real API server, and its log.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use kubeveil_keys::Generation;
use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    cluster::{InApiServer, mesh_kind},
    server::{Server, Who},
    world::{World, until},
};
use serde_json::{Value, json};

use crate::{
    agent::announces_of,
    controller::{controller, events, namespace},
    suite::{mesh, put},
};

/// What was logged since somebody first asked, by all that runs in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn kept() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Self::default();
            let writer = log.clone();
            tracing_subscriber::fmt().json().with_writer(move || writer.clone()).init();
            log
        })
    }

    /// The fields of each line of this message, from the controller.
    fn of(&self, message: &str) -> Vec<Value> {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8(text).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let ours = lines.filter(|line| line["target"].as_str().unwrap().starts_with("kubeveil_controller"));
        ours.map(|line| line["fields"].clone()).filter(|fields| fields["message"] == message).collect()
    }
}

/// Who asked, for which generation, why, how long it took, who was late, what became of it: each rotation has its events and its lines,
/// also one that came and went while no controller looked.
pub(crate) fn a_rotation_is_told_of(server: &mut Server) {
    let log = Log::kept();
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&mesh()).unwrap();
    let mut have = |generation: u32| {
        (1..=2).for_each(|n| announces_of(&mut world, n, Generation::new(generation)));
    };
    let mut nodes = InApiServer::resumed(server).unwrap();
    (1..=2).for_each(|n| put(&mut nodes, n));
    have(0);
    namespace(server);
    let leads = controller(server);
    let rotating = || {
        let mesh = nodes.get(&mesh_kind(), "default").unwrap();
        let conditions = mesh["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == "Rotating");
        found.map(|found| found["reason"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    until("none took place", || rotating() == "NeverRotated");
    let asks = |generation: u32, rotation: Value| {
        let spec = json!({"keyGeneration": generation, "rotation": rotation});
        let body = json!({"spec": spec}).to_string();
        let asks = Request::patch("merge", &crate::rights::mesh_path(), &body);
        ask(server, &server.client(Who::Admin).unwrap(), &asks).unwrap();
    };
    let event = |kind: &str, reason: &str, begins: &str| {
        let mut found = None;
        until(&format!("an event tells: {begins}"), || {
            let is_it = |event: &Value| {
                event["note"].as_str().is_some_and(|note| note.starts_with(begins))
                    && event["reason"] == reason
            };
            found = events(server).into_iter().find(is_it);
            found.is_some()
        });
        let event = found.unwrap();
        assert_eq!((&event["type"], &event["regarding"]["kind"]), (&json!(kind), &json!("EncryptionMesh")));
        event["note"].as_str().unwrap().to_owned()
    };

    // One in time.
    asks(1, json!({"requestedBy": "admin", "reason": "told: in time"}));
    event("Normal", "RotationUnderWay", "to generation 1, asked for by admin (told: in time)");
    have(1);
    event("Normal", "RotationOver", "generation 1, asked for by admin (told: in time): done in ");

    // One that is late, whose reason is as long as it may be, in letters of four bytes.
    let long = format!("told: {}", "🔑".repeat(250));
    let asked_at = jiff::Timestamp::now() - Duration::from_secs(700);
    asks(2, json!({"requestedBy": "admin", "reason": long, "requestedAt": format!("{asked_at:.0}")}));
    let late = event("Warning", "RotationLate", "to generation 2, asked for by admin (told: 🔑");
    assert!(late.len() <= 1024 && late.ends_with('…'), "{late}");
    have(2);
    event("Normal", "RotationOver", "generation 2, asked for by admin (told: 🔑");

    // One that nobody saw.
    drop(leads);
    asks(3, json!({"requestedBy": "admin", "reason": "told: unseen", "requestedAt": null}));
    have(3);
    let _leads = controller(server);
    event("Normal", "RotationOver", "generation 3, asked for by admin (told: unseen): done in ");

    // The log has the same in fields, from begin to end. A line comes a moment after its event; and twice, where a watch lags behind.
    let of = |generation: u32, result: &str| {
        let is_it = |line: &Value| line["generation"] == generation && line["result"] == result;
        let mut found = None;
        until(&format!("a line tells: {generation} {result}"), || {
            found = log.of("rotation").into_iter().find(is_it);
            found.is_some()
        });
        found.unwrap()
    };
    for (generation, reason) in [(1, "told: in time"), (2, &*long), (3, "told: unseen")] {
        let done = of(generation, "done");
        assert_eq!((&done["requested_by"], &done["reason"]), (&json!("admin"), &json!(reason)), "{done}");
        assert!(done["started_at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{done}");
        let late = if generation == 2 { "node-1,node-2" } else { "" };
        assert_eq!(done["stragglers"], late, "{done}");
        let took = done["seconds"].as_i64().unwrap();
        assert!(if generation == 2 { took >= 700 } else { (0..120).contains(&took) }, "{done}");
    }
    let begun = of(1, "running");
    assert_eq!((&begun["requested_by"], begun.get("seconds")), (&json!("admin"), None), "{begun}");
    assert_eq!(of(2, "running")["stragglers"], "node-1,node-2");
}

/// Who bypassed which nodes, until when and why: when it begins, and when it has ended by itself.
pub(crate) fn a_bypass_is_told_of(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&mesh()).unwrap();
    (1..=2).for_each(|n| put(&mut world, n));
    namespace(server);
    let _leads = controller(server);
    let bypassed = || {
        let mesh = world.get(&mesh_kind(), "default").unwrap();
        let conditions = mesh["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == "Bypassed");
        found.map(|found| found["status"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    until("nobody is", || bypassed() == "False");
    let told = |kind: &str, reason: &str| {
        let is_it = |event: &Value| event["reason"] == reason && event["type"] == kind;
        events(server).into_iter().find(is_it).map(|event| event["note"].as_str().unwrap().to_owned())
    };
    assert_eq!(told("Normal", "NoBypass"), None, "that there is none is no news");
    let now = jiff::Timestamp::now();
    let (at, ends) = (now - Duration::from_secs(1), now + Duration::from_secs(8));
    let bypass = json!({
        "nodes": ["node-1", "node-2"], "by": "admin", "reason": "INC-1",
        "at": format!("{at:.0}"), "until": format!("{ends:.0}"),
    });
    let body = json!({"spec": {"bypasses": [bypass]}}).to_string();
    let asks = Request::patch("merge", &crate::rights::mesh_path(), &body);
    ask(server, &server.client(Who::Admin).unwrap(), &asks).unwrap();
    until("it begins", || told("Warning", "PairsBypassed").is_some());
    let words = format!("in plain: node-1 and node-2 until {ends:.0}, by admin (INC-1)");
    assert_eq!(told("Warning", "PairsBypassed"), Some(words));
    assert_eq!(bypassed(), "True");
    // Nothing stirs, and it is told all the same.
    until("it is over", || told("Normal", "NoBypass").is_some() && bypassed() == "False");
}
