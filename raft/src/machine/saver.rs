//! Makes images durable, one after another, beside the apply loop.
//!
//! An image must never be durable before the log it was made from (LAW-ORDER): a node that restarts with an image ahead of
//! its log would throw the log away. So the saver first waits for the writer to sync what was appended, then writes. It
//! blocks neither the apply loop (up to the small queue before it) nor the runtime.

use std::io;

use tokio::sync::{mpsc, watch};

use crate::{
    config::WriterMode,
    fatal::Fatal,
    log::Log,
    snapshot::{Image, Images},
    store::completion,
    types::Position,
};

/// Images waiting to be written; beyond that the apply loop waits.
const QUEUE: usize = 2;

/// Where the apply loop leaves its images.
pub(crate) struct Saver {
    queue: mpsc::Sender<Image>,
}

impl Saver {
    /// The saver, the task to spawn for it, and the border of the newest image it has made durable.
    pub(crate) fn new(
        log: Log,
        images: Images,
        mode: WriterMode,
        fatal: Fatal,
    ) -> (Self, impl Future<Output = ()> + Send, watch::Receiver<Position>) {
        let (queue, mut waiting) = mpsc::channel::<Image>(QUEUE);
        let newest = images.newest().map(|meta| meta.point.border).unwrap_or_default();
        let (saved, newest_saved) = watch::channel(newest);
        let work = async move {
            while let Some(image) = waiting.recv().await {
                let border = image.meta.point.border;
                if let Err(error) = save(&log, &images, mode, image).await {
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        fatal.set(format!("image at {border}: {error}"));
                    }
                    return;
                }
                tracing::info!(%border, "image saved");
                saved.send_replace(border);
            }
        };
        (Self { queue }, work, newest_saved)
    }

    /// Queues an image; waits while too many are queued. Nothing happens once the saver has stopped.
    pub(crate) async fn save(&self, image: Image) {
        let _ = self.queue.send(image).await;
    }
}

async fn save(log: &Log, images: &Images, mode: WriterMode, image: Image) -> io::Result<()> {
    let (done, synced) = completion();
    log.sync_all(done);
    synced.await?;
    let images = images.clone();
    blocking(mode, move || images.save(&image)).await
}

/// Runs file work beside the runtime's threads; in simulation at once, because there a second thread would be chance.
pub(crate) async fn blocking<T: Send + 'static>(
    mode: WriterMode,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match mode {
        WriterMode::Task => work(),
        WriterMode::Thread => match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(gone) => Err(io::Error::other(gone)),
        },
    }
}
