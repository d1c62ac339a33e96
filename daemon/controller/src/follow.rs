//! Objects of the API server, followed: of each what is of interest is kept, and nothing else.

use std::{fmt::Debug, pin::pin, sync::Arc};

use futures_util::StreamExt as _;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{ApiResource, DynamicObject, Object, params::ListParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{Config, Event, watcher},
    },
};
use kubeveil_kubernetes::theirs;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{sync::Notify, task::JoinSet};

use crate::kept::Kept;

/// Parts that are read later, each for itself: one object that can't be read must not stop the others.
pub(crate) type Loose = Object<Option<Value>, Value>;

/// What can be followed.
pub(crate) trait Followed:
    Resource<DynamicType = ApiResource> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K> Followed for K where
    K: Resource<DynamicType = ApiResource> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// Watches, as long as it lives.
pub(crate) struct Watches {
    pub(crate) client: Client,
    /// Notified whenever something changes.
    stirred: Arc<Notify>,
    tasks: JoinSet<()>,
}

impl Watches {
    pub(crate) fn new(client: &Client, stirred: Arc<Notify>) -> Self {
        Self { client: client.clone(), stirred, tasks: JoinSet::new() }
    }

    /// They go on for ever, so one that does not is broken.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.tasks.try_join_next().is_some()
    }

    /// Those of a kind, in all namespaces.
    pub(crate) fn all<K: Followed, T: Clone + Send + 'static>(
        &mut self,
        kind: &ApiResource,
        name: impl Fn(&K) -> String + Send + 'static,
        read: impl Fn(K, Option<&T>) -> Option<T> + Send + 'static,
    ) -> Kept<T> {
        self.some(Api::all_with(self.client.clone(), kind), Config::default(), name, read)
    }

    /// Those that `config` selects. Under its `name` is kept what `read` makes of an object and of what was kept of it, if anything.
    pub(crate) fn some<K: Followed, T: Clone + Send + 'static>(
        &mut self,
        api: Api<K>,
        config: Config,
        name: impl Fn(&K) -> String + Send + 'static,
        read: impl Fn(K, Option<&T>) -> Option<T> + Send + 'static,
    ) -> Kept<T> {
        let kept = Kept::default();
        let (mine, stirred, client) = (kept.clone(), self.stirred.clone(), self.client.clone());
        let what = api.resource_url().to_owned();
        let events = watcher(api, config).default_backoff();
        self.tasks.spawn(async move {
            let mut events = pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::InitDone) if mine.would_be_emptied() && !knows_a_node(&client).await => {
                        tracing::warn!("a list of {what} is empty, and no node is known to who gave it: all is asked anew");
                        return;
                    }
                    Ok(event) => {
                        mine.take(event, &name, &read);
                        stirred.notify_one();
                    }
                    // It tells of nothing; what is blind is asked when something else does.
                    Err(e) => {
                        tracing::warn!("watch {what}: {e}");
                        mine.fail();
                    }
                }
            }
        });
        kept
    }
}

/// Of whom no Node is known nothing is believed to be gone: an API server whose store was lost, or the wrong one.
async fn knows_a_node(client: &Client) -> bool {
    let nodes: Api<DynamicObject> = Api::all_with(client.clone(), &theirs("", "Node", "nodes"));
    nodes.list_metadata(&ListParams::default().limit(1)).await.is_ok_and(|nodes| !nodes.items.is_empty())
}

/// Under which no other of its kind is kept.
pub(crate) fn full_name<K: Resource>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}
