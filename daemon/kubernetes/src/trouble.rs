//! What is wrong with a request, in words that help.

use std::{error::Error, time::Duration};

use jiff::Timestamp;
use kube::core::Status;
use kubeveil_api::problem::{Problem, ProblemKind, causes, readable};

use crate::store::Disbelief;

/// Why something that was asked of the API server was not done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Address or credentials can't be had.
    Origin { object: String, why: String },
    /// The request failed, or was refused.
    Request(kube::Error),
    /// What it answered is not what was asked for.
    Answer(serde_json::Error),
    /// No answer within this time.
    Late(Duration),
    /// The list that it gave does not count.
    Disbelief(Disbelief),
    /// A watch that ended, or fell silent, sooner than it should have.
    Broken(&'static str),
    /// A watch can't go on from where it was.
    Expired,
}

/// What was asked for, as RBAC has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deed {
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static str,
}

const NOT_FOUND: u16 = 404;
const GONE: u16 = 410;

impl Failure {
    /// What the API server said, if it said something.
    fn status(&self) -> Option<&Status> {
        match self {
            Self::Request(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }

    /// The API server's answer as HTTP has it, if it answered.
    pub(crate) fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// How long the API server wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let details = self.status()?.details.as_ref()?;
        Some(Duration::from_secs(details.retry_after_seconds.into()))
    }

    /// Only a full list helps.
    pub(crate) fn needs_list(&self) -> bool {
        matches!(self, Self::Expired | Self::Answer(_) | Self::Request(kube::Error::SerdeError(_)))
            || self.status().is_some_and(|status| [GONE, NOT_FOUND].contains(&status.code))
    }

    /// The API server answered, so the connection and the credentials serve.
    pub(crate) fn keeps_connection(&self) -> bool {
        match self {
            Self::Disbelief(_) | Self::Expired => true,
            _ => self.status().is_some_and(|status| status.code != 401),
        }
    }

    /// Watches end, for many reasons; that one does is told if it happens twice in a row.
    pub(crate) fn is_common(&self) -> bool {
        matches!(self, Self::Expired | Self::Broken(_) | Self::Request(kube::Error::ReadEvents(_)))
            || self.status().is_some_and(|s| s.code == GONE)
    }

    /// For people. `server` is what was asked, `since` when it failed first.
    pub(crate) fn problem(&self, server: &str, deed: Deed, since: Timestamp) -> Problem {
        let Deed { verb, resource } = deed;
        let (object, message, advice) = match (self, self.status()) {
            (Self::Origin { object, why }, _) => {
                (object.clone(), format!("gives no access to an API server: {why}"), ORIGIN.to_owned())
            }
            (Self::Disbelief(Disbelief::Older { seen, listed }), _) => {
                let message = format!(
                    "its list of {resource} is of resourceVersion {listed}, and {seen} was seen before: nothing is \
                     removed by it"
                );
                (server.to_owned(), message, OLDER.to_owned())
            }
            (Self::Disbelief(Disbelief::LacksOwn(own)), _) => {
                let message = "does not exist, though kubeveild runs on it: nothing is removed by such a list";
                (format!("Node {own}"), message.to_owned(), OWN.to_owned())
            }
            (_, Some(status)) => refusal(server, deed, status, since),
            _ if is_refused_certificate(self) => (
                server.to_owned(),
                format!("its certificate is refused: {}", self.why()),
                "Is the certificate authority in the kubeconfig (or of the service account) this cluster's, and is \
                 the address that is asked named in the certificate? What is known stands"
                    .to_owned(),
            ),
            _ => (
                server.to_owned(),
                format!("can't be asked to {verb} {resource} since {since:.0}: {}", self.why()),
                UNREACHABLE.to_owned(),
            ),
        };
        Problem {
            kind: ProblemKind::Source,
            object,
            field: String::new(),
            message: readable(&message),
            advice,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Request(error) => causes(error),
            Self::Answer(error) => format!("its answer can't be read: {error}"),
            Self::Late(limit) => format!("no answer within {} s", limit.as_secs()),
            Self::Broken(how) => (*how).to_owned(),
            Self::Expired => "a watch can't go on from where it was".to_owned(),
            Self::Origin { why, .. } => why.clone(),
            Self::Disbelief(_) => String::new(),
        }
    }
}

const ORIGIN: &str = "Correct it, or --source; what is known stands until then";
const OLDER: &str =
    "If the API server's store was put back to an earlier state, restart kubeveild; else it catches up";
const OWN: &str = "Is --node the name of this node's Node, and this the right cluster?";
const UNREACHABLE: &str = "Is it running, and can this node reach it? What is known stands until then";

/// The API server answered that it won't.
fn refusal(server: &str, deed: Deed, status: &Status, since: Timestamp) -> (String, String, String) {
    let Deed { verb, resource } = deed;
    let said = &status.message;
    // As the API server words what an admission policy says (k8s.io/apiserver, `plugin/policy/validating`).
    if let Some((_, policy)) = said.split_once(" denied request: ") {
        let message = format!("an admission policy does not let us {verb} {resource}: {policy}");
        return (server.to_owned(), message, "Do as the policy says, or ask who made it".to_owned());
    }
    match status.code {
        401 => (
            server.to_owned(),
            format!("does not know who we are: {said}"),
            "Is the token or client certificate in force? Renew it; what is known stands until then"
                .to_owned(),
        ),
        403 => (
            server.to_owned(),
            format!("does not let us {verb} {resource}: {said}"),
            format!("Bind kubeveild's account to a ClusterRole with the verb {verb} on {resource}"),
        ),
        NOT_FOUND if verb != "patch" => (
            format!("CustomResourceDefinition {resource}"),
            "is not installed, so nothing of that kind is known, and nothing is removed".to_owned(),
            "Install it: kubectl apply --server-side -f deploy/crds".to_owned(),
        ),
        code => (
            server.to_owned(),
            format!("can't {verb} {resource} since {since:.0}: {said} ({code})"),
            "It is tried again; what is known stands until then".to_owned(),
        ),
    }
}

/// Somewhere among the causes.
fn is_refused_certificate(failure: &Failure) -> bool {
    let Failure::Request(error) = failure else { return false };
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // An `io::Error` that wraps another error gives that one's cause for its own.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = wrapped.map(|error| error as &(dyn Error + 'static)).or_else(|| error.source());
    }
    false
}
