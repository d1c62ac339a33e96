//! What is armed is disarmed, whatever becomes of who asked.

use std::{
    sync::{Mutex, PoisonError},
    thread,
};

use http_body_util::BodyExt as _;
use kubeveil_linux::{Flow, route::Routes};

use super::*;
use crate::{http::Closed, metrics::Durations};

/// A node's thread that only notes what it is told to watch.
#[derive(Clone, Default)]
struct Noted(Arc<Mutex<Vec<Vec<Flow>>>>);

impl Noted {
    fn all(&self) -> Vec<Vec<Flow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A door to it. The thread ends with the last sender.
    fn door(&self) -> Arc<Door> {
        let (events, inbox) = mpsc::channel();
        let noted = self.clone();
        thread::spawn(move || {
            for event in inbox {
                match event {
                    Event::Ask(Question::Watch(flows, answer)) => {
                        noted.0.lock().unwrap_or_else(PoisonError::into_inner).push(flows);
                        drop(answer.send(Ok(())));
                    }
                    Event::Ask(Question::Seen(answer)) => {
                        let (node, seen) = ("node-1".to_owned(), Vec::new());
                        drop(answer.send(Ok(Watched { schema_version: 1, node, seen, is_short: false })));
                    }
                    _ => {}
                }
            }
        });
        Arc::new(Door {
            events,
            durations: Arc::new(Durations::new()),
            closed: Closed::default(),
            routes: Routes::connect().expect("netlink"),
            watching: Arc::default(),
        })
    }

    async fn until(&self, count: usize) {
        let reached = async {
            while self.all().len() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(10), reached).await;
        done.unwrap_or_else(|_| panic!("only told to watch {:?}", self.all()));
    }
}

fn one() -> Flow {
    let address = |text: &str| text.parse().expect("an address");
    Flow { source: address("10.244.1.2"), destination: address("10.244.2.2") }
}

fn for_seconds(seconds: u32) -> Json<Watch> {
    Json(Watch { flows: vec![one()], seconds })
}

#[tokio::test]
async fn it_is_armed_while_somebody_waits() {
    let noted = Noted::default();
    let door = noted.door();
    let answer = watch(State(door.clone()), for_seconds(1)).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    let watched: Watched = serde_json::from_slice(&body).expect("a document");
    assert_eq!(watched.node, "node-1");
    noted.until(2).await;
    assert_eq!(noted.all(), [vec![one()], Vec::new()]);
}

#[tokio::test]
async fn who_goes_before_the_time_disarms_it() {
    let noted = Noted::default();
    let door = noted.door();
    let asked = tokio::spawn(watch(State(door.clone()), for_seconds(600)));
    noted.until(1).await;
    asked.abort();
    noted.until(2).await;
    assert_eq!(noted.all()[1], []);
    // And the next one may.
    let again = tokio::spawn(watch(State(door), for_seconds(600)));
    noted.until(3).await;
    assert_eq!(noted.all()[2].len(), 1);
    again.abort();
}

#[tokio::test]
async fn one_watches_at_a_time() {
    let noted = Noted::default();
    let door = noted.door();
    let first = tokio::spawn(watch(State(door.clone()), for_seconds(600)));
    noted.until(1).await;
    assert_eq!(watch(State(door.clone()), for_seconds(1)).await.status(), StatusCode::CONFLICT);
    assert_eq!(noted.all().len(), 1, "the first one still watches");
    first.abort();
}

#[tokio::test]
async fn what_makes_no_sense_arms_nothing() {
    let noted = Noted::default();
    let door = noted.door();
    for watched in [for_seconds(0), Json(Watch { flows: Vec::new(), seconds: 1 })] {
        assert_eq!(watch(State(door.clone()), watched).await.status(), StatusCode::BAD_REQUEST);
    }
    assert!(noted.all().is_empty());
}
