//! openraft's state machine over ours: executes entries in order, answers each, and takes an image at every segment border.
//!
//! The image of a border holds everything before the first entry of the new segment, so it is taken right before that entry
//! is applied, inside the loop: batches cross borders. Replay crosses the same borders and takes the same images again,
//! which changes nothing. The Raft snapshot is the image at the floor and no other, because it decides what may be purged.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use tokio::sync::watch;

use crate::{
    binding::{
        Entry, RaftLogId, Reply, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, decode_stored_membership,
        encode_stored_membership, from_raft, to_raft,
    },
    config::WriterMode,
    fatal::{Fatal, panic_words},
    log::{Log, Payload},
    machine::{
        CommittedEntry, ImagePoint,
        erased::ErasedMachine,
        saver::{Saver, blocking},
    },
    snapshot::{Image, ImageMeta, Images},
    store::completion,
    types::{LogId, Position},
};

/// How far a node has applied.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Applied {
    /// The last applied entry.
    pub id: Option<LogId>,
    /// The log's running hash after it.
    pub chain: u32,
    /// The floor that the log has set by then.
    pub floor: Position,
}

/// Everything beside the machine that a place in the log stands for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// What is applied.
    pub applied: Applied,
    /// The membership as of then.
    pub membership: StoredMembership,
    /// The border of the segment that the next entry is expected in, or the one before it if the segment is full.
    pub border: Position,
}

/// The machine in openraft's hands.
pub(crate) struct Applier {
    /// Never locked, only opened by its one owner: openraft wants to share what it owns.
    machine: Mutex<Box<dyn ErasedMachine>>,
    place: Place,
    log: Log,
    images: Images,
    mode: WriterMode,
    saver: Saver,
    fatal: Fatal,
    published: watch::Sender<Applied>,
}

impl Applier {
    /// A machine that stands at `place`.
    pub(crate) fn new(
        machine: Box<dyn ErasedMachine>,
        place: Place,
        log: Log,
        images: Images,
        mode: WriterMode,
        saver: Saver,
        fatal: Fatal,
    ) -> Self {
        let published = watch::Sender::new(place.applied.clone());
        Self { machine: Mutex::new(machine), place, log, images, mode, saver, fatal, published }
    }

    /// How far this node has applied, now and later.
    pub(crate) fn watch(&self) -> watch::Receiver<Applied> {
        self.published.subscribe()
    }

    /// Calls the machine. What it cannot do it says by a panic (a disk fault, damage): that ends the node, with its words.
    fn call<T>(&mut self, call: impl FnOnce(&mut dyn ErasedMachine) -> T) -> io::Result<T> {
        let machine = self.machine.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut();
        catch_unwind(AssertUnwindSafe(|| call(machine))).map_err(|panic| {
            let words = format!("machine: {}", panic_words(panic.as_ref()));
            self.fatal.set(words.clone());
            io::Error::other(words)
        })
    }

    /// Takes the image of the border before this entry, if it is the first one behind it.
    async fn cross(&mut self, position: Position) -> io::Result<()> {
        let border = self.log.border_below(position);
        if border <= self.place.border {
            return Ok(());
        }
        self.place.border = border;
        if self.place.applied.id.is_none() {
            return Ok(());
        }
        // Always asked for, also when replay finds the image saved: the machine may note the border (LAW-SAME).
        let machine = self.call(|machine| machine.save_image(border))?;
        let saved = self.images.newest_upto(border).is_some_and(|meta| meta.point.border == border);
        if !saved {
            let point = ImagePoint { applied: self.place.applied.id, border };
            let membership = encode_extra(&self.place);
            let meta = ImageMeta { point, chain: self.place.applied.chain, membership };
            self.saver.save(Image { meta, machine }).await;
        }
        Ok(())
    }

    async fn execute(&mut self, entry: Entry) -> io::Result<Reply> {
        let membership = openraft::entry::RaftEntry::get_membership(&entry);
        let frame = entry.into_frame();
        let Some(place) = frame.place else {
            let reason = format!("entry {} has no place in the log", frame.id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        };
        self.cross(place.position).await?;
        self.place.applied.id = Some(frame.id);
        self.place.applied.chain = place.chain;
        let position = frame.payload_position();
        Ok(match frame.payload {
            Payload::Blank => Reply::none(),
            Payload::Normal(payload) => {
                self.call(|machine| machine.apply(CommittedEntry { id: frame.id, position, payload }))?
            }
            Payload::Membership(_) => {
                let at = Some(to_raft(frame.id));
                self.place.membership = StoredMembership::new(at, membership.unwrap_or_default());
                Reply::none()
            }
            Payload::Floor(floor) => {
                self.move_floor(floor)?;
                Reply::none()
            }
        })
    }

    /// Every node decides alike: only forward, only to a border, only below the segment that this very entry stands in.
    fn move_floor(&mut self, floor: Position) -> io::Result<()> {
        let is_border = self.log.border_below(floor) == floor;
        if is_border && floor > self.place.applied.floor && floor <= self.place.border {
            tracing::info!(%floor, "floor moved");
            self.place.applied.floor = floor;
            self.call(|machine| machine.floor(floor))?;
        }
        Ok(())
    }

    fn publish(&self) {
        self.published.send_replace(self.place.applied.clone());
    }
}

/// Membership and floor of a place, as an image carries them beside the machine's own bytes.
pub(crate) fn encode_extra(place: &Place) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(place.applied.floor.0);
    out.put_slice(&encode_stored_membership(&place.membership));
    out.freeze()
}

/// The place an image stands for; `None` if its extra bytes are malformed.
pub(crate) fn place_of(meta: &ImageMeta) -> Option<Place> {
    let mut extra = meta.membership.clone();
    let floor = Position(extra.try_get_u64_le().ok()?);
    let membership = decode_stored_membership(extra)?;
    let applied = Applied { id: meta.point.applied, chain: meta.chain, floor };
    Some(Place { applied, membership, border: meta.point.border })
}

fn malformed(meta: &ImageMeta) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("image at {}: malformed membership", meta.point.border))
}

/// What openraft knows an image by.
pub(crate) fn snapshot_meta(meta: &ImageMeta) -> io::Result<SnapshotMeta> {
    let place = place_of(meta).ok_or_else(|| malformed(meta))?;
    Ok(SnapshotMeta { last_log_id: place.applied.id.map(to_raft), last_membership: place.membership })
}

/// An image as the Raft snapshot: with its bytes, or without them if its file cannot be read. openraft ends a node that cannot read its
/// snapshot; one without bytes is not sent, and asked for again until its file has been put back (`group::mend`).
async fn snapshot(images: &Images, mode: WriterMode, meta: ImageMeta) -> io::Result<Snapshot> {
    let images = images.clone();
    let border = meta.point.border;
    let loaded = blocking(mode, move || Ok(images.load(border).ok())).await?;
    Ok(Snapshot { meta: snapshot_meta(&meta)?, snapshot: loaded })
}

/// Makes the image at a border the Raft snapshot.
pub(crate) struct Builder {
    images: Images,
    mode: WriterMode,
    border: Option<Position>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Option<Image>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let Some(border) = self.border else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the log is purged and there is no image to go with it",
            ));
        };
        let images = self.images.clone();
        blocking(self.mode, move || images.make_current(border)).await?;
        let meta = self.images.current().ok_or(io::ErrorKind::NotFound)?;
        snapshot(&self.images, self.mode, meta).await
    }
}

impl RaftStateMachine<TypeConfig> for Applier {
    type SnapshotData = Option<Image>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        Ok((self.place.applied.id.map(to_raft), self.place.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let reply = self.execute(entry).await?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        let synced = self.log.synced();
        self.call(|machine| machine.settle(synced))?;
        self.publish();
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let current = self.images.current().map(|meta| meta.point.border);
        let border = if force {
            // At start, when the log is purged and no image is current: the one that the log starts behind.
            let floor = self.log.floor().position;
            current.or_else(|| {
                self.images.newest_upto(floor).or_else(|| self.images.newest()).map(|meta| meta.point.border)
            })
        } else {
            let at_floor = self.images.newest_upto(self.place.applied.floor).map(|meta| meta.point.border);
            Some(at_floor.filter(|border| current.is_none_or(|current| *border > current))?)
        };
        Some(Builder { images: self.images.clone(), mode: self.mode, border })
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let border = self.images.current().map(|meta| meta.point.border);
        Builder { images: self.images.clone(), mode: self.mode, border }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Option<Image>) -> io::Result<()> {
        let image = image.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an image that cannot be read"))?;
        let place = place_of(&image.meta).ok_or_else(|| malformed(&image.meta))?;
        let Some(applied) = image.meta.point.applied else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an image of nothing cannot be installed"));
        };
        if meta.last_log_id.as_ref().map(from_raft) != Some(applied) {
            let reason = format!("image of {applied} came as the snapshot of another entry");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        // The image first, then the log: a node cut in between finds an image ahead of its log and takes the same step again.
        let images = self.images.clone();
        let image = blocking(self.mode, move || images.install(&image).map(|()| image)).await?;
        let (done, wait) = completion();
        self.log.reset_to(image.meta.point, image.meta.chain, done);
        wait.await?;
        self.call(|machine| machine.load_image(image.meta.point, &image.machine))?
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        tracing::info!(%applied, border = %image.meta.point.border, "image installed");
        self.place = place;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let Some(meta) = self.images.current() else {
            return Ok(None);
        };
        snapshot(&self.images, self.mode, meta).await.map(Some)
    }
}
