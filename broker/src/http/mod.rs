//! The HTTP listener of operators: health checks for orchestrators, metrics for Prometheus. It reads and never changes anything.
//!
//! `server` serves, `scrape` looks at the node, `text` writes what it saw.

pub(crate) mod scrape;
mod server;
mod text;

use std::sync::{Arc, OnceLock};

use quorate_proto::doors::BoxFuture;

use self::scrape::Scrape;
pub use self::server::{Page, Site, serve};
use crate::{
    health::{Check, Health},
    metrics::Family,
};

const PROTOBUF: &str = "application/x-protobuf";
const READS: &str = "the node reads its log";

const INDEX: &str = "\
quorate

/health/live          the node runs
/health/ready         it can serve or forward
/health/safe-to-stop  the group keeps its quorum without it
/metrics              numbers for Prometheus
/cluster              every node of the group (protobuf, for `quorate cluster status`)
";

/// Gathers the state of the broker group as `quorate.admin.ClusterStatusResponse`. It stands here too because a node that reaches no other
/// closes its client listeners, and is then the one that operators want to ask.
pub(crate) type ClusterPage = Arc<dyn Fn() -> BoxFuture<'static, Vec<u8>> + Send + Sync>;

/// Metrics as a page for Prometheus, each sample with the labels `common` before its own.
pub fn metrics_page(families: &[Family], common: &[(&str, &str)]) -> Page {
    Page::of(text::KIND, text::write(families, common))
}

/// What a node serves. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pages {
    /// The node's health.
    pub health: Arc<Health>,
    /// Its metrics, once there is a node.
    pub scrape: Arc<OnceLock<Scrape>>,
    /// The state of the group, once the node has joined it.
    pub cluster: Arc<OnceLock<ClusterPage>>,
}

impl Site for Pages {
    async fn page(&self, path: &str) -> Page {
        if let Some(check) = Check::ALL.into_iter().find(|check| path.strip_prefix("/health/") == Some(check.name())) {
            return Page::check(check.name(), &self.health.why_not(check));
        }
        match path {
            "/" => Page::text(INDEX),
            "/metrics" => self.scrape.get().map_or_else(|| Page::not_yet(READS), Scrape::page),
            "/cluster" => match self.cluster.get() {
                Some(gather) => Page::of(PROTOBUF, gather().await),
                None => Page::not_yet(READS),
            },
            _ => Page::missing(),
        }
    }
}

#[cfg(test)]
#[path = "pages_test.rs"]
mod tests;
