//! Where a machine continues after a start: at its own checkpoint, at an image, or at the beginning.
//!
//! The checkpoint is used only if this node's log can continue from it and the image of the segment it stands in is saved;
//! without that image a later floor could never be moved there. Otherwise the newest image that the machine accepts, down
//! to the one at the floor. Everything after that is replay.
//!
//! Nothing from before the current image (the Raft snapshot) is used, even while the log still reaches back that far because
//! a purge was cut short: openraft would bring such a machine forward by installing the snapshot in the middle of its own
//! start, and so purge the log that it has just made plans with.

use crate::{
    binding::{StoredMembership, decode_membership, to_raft},
    hard_state::OpenError,
    log::{Log, Payload},
    machine::{
        ImagePoint,
        applier::{Applied, Place, place_of},
        erased::ErasedMachine,
    },
    snapshot::{COPY, ImageMeta, Images},
    store::completion,
    types::{LogId, LogIndex, Position},
};

/// Puts the machine at the latest place it can continue from and says which that is.
///
/// # Errors
/// Disk faults, and a log that starts behind a floor without a usable image (the directory must be wiped; the node comes
/// back as a learner).
pub(crate) async fn restore(machine: &mut dyn ErasedMachine, log: &Log, images: &Images) -> Result<Place, OpenError> {
    finish_install(log, images).await?;
    let snapshot = images.current().and_then(|meta| meta.point.applied);
    let reaches = |applied: Option<LogId>| applied.map(|id| id.index) >= snapshot.map(|id| id.index);
    let checkpoint = machine.applied().filter(|applied| reaches(Some(*applied)));
    if let Some(place) = at_checkpoint(checkpoint, log, images)? {
        tracing::info!(applied = ?place.applied.id, "machine continues from its checkpoint");
        return Ok(place);
    }
    for meta in images.list().into_iter().rev().filter(|meta| reaches(meta.point.applied)) {
        if let Some(place) = at_image(machine, log, images, &meta)? {
            tracing::info!(border = %meta.point.border, "machine continues from an image");
            return Ok(place);
        }
    }
    let floor = log.floor();
    if floor.purged.is_some() || snapshot.is_some() {
        let border = images.current().map_or(floor.position, |meta| meta.point.border);
        let reason =
            format!("{}: the image of what came before the log cannot be used; {COPY}", images.file(border).display());
        return Err(OpenError::Corrupt(reason));
    }
    let empty = ImagePoint { applied: None, border: Position(0) };
    machine.load_image(empty, &[]).map_err(|error| OpenError::Corrupt(error.to_string()))?;
    Ok(Place::default())
}

/// An install that was cut between its image and its log: the image leads.
async fn finish_install(log: &Log, images: &Images) -> Result<(), OpenError> {
    let Some(meta) = images.current() else {
        return Ok(());
    };
    if meta.point.applied.map(|id| id.index) <= log.last().map(|id| id.index) {
        return Ok(());
    }
    let (done, wait) = completion();
    log.reset_to(meta.point, meta.chain, done);
    wait.await.map_err(|source| OpenError::Io { what: "log".into(), source })
}

/// Whether the log holds this entry, or starts right behind it.
fn holds(log: &Log, id: LogId) -> Result<bool, OpenError> {
    if log.purged() == Some(id) {
        return Ok(true);
    }
    if log.purged().is_some_and(|purged| id.index <= purged.index)
        || log.last().is_none_or(|last| id.index > last.index)
    {
        return Ok(false);
    }
    Ok(log.id_at(id.index).map_err(at(id))? == Some(id))
}

fn at(id: LogId) -> impl Fn(std::io::Error) -> OpenError {
    move |source| OpenError::Io { what: format!("log at entry {id}"), source }
}

fn at_checkpoint(applied: Option<LogId>, log: &Log, images: &Images) -> Result<Option<Place>, OpenError> {
    let Some(applied) = applied else {
        return Ok(None);
    };
    if !holds(log, applied)? {
        tracing::warn!(%applied, "checkpoint is not of this log and is not used");
        return Ok(None);
    }
    // Exactly where an image was taken, the image leads: it stands behind that border, while the checkpoint may be of a
    // machine that had not crossed it yet. What is purged ends at such a place too.
    if log.purged() == Some(applied) || images.list().iter().any(|meta| meta.point.applied == Some(applied)) {
        return Ok(None);
    }
    let Some(position) = log.position_of(applied.index).map_err(at(applied))? else {
        return Ok(None);
    };
    let border = log.border_below(position);
    let mut place = match images.newest_upto(border).filter(|meta| meta.point.border == border) {
        Some(meta) => match place_of(&meta) {
            Some(place) => place,
            None => return Ok(None),
        },
        None if border == Position(0) => Place::default(),
        None => {
            tracing::warn!(%border, "checkpoint is ahead of the images and is not used");
            return Ok(None);
        }
    };
    if place.applied.id.is_some_and(|image| image.index > applied.index) {
        return Ok(None);
    }
    follow(&mut place, applied.index, log)?;
    let chain = log.chain_at(applied.index).map_err(at(applied))?;
    place.applied = Applied { id: Some(applied), chain: chain.unwrap_or_default(), floor: place.applied.floor };
    Ok(Some(place))
}

/// Brings membership and floor of an image's place forward to an entry behind it.
fn follow(place: &mut Place, upto: LogIndex, log: &Log) -> Result<(), OpenError> {
    let from = place.applied.id.map(|id| id.index);
    let (membership, floor) = log.last_special(upto);
    if let Some(frame) = membership.filter(|frame| from.is_none_or(|from| frame.id.index > from))
        && let Payload::Membership(body) = &frame.payload
    {
        let decoded = decode_membership(body.clone());
        let decoded =
            decoded.ok_or_else(|| OpenError::Corrupt(format!("membership of entry {} is malformed", frame.id)))?;
        place.membership = StoredMembership::new(Some(to_raft(frame.id)), decoded);
    }
    if let Some(frame) = floor.filter(|frame| from.is_none_or(|from| frame.id.index > from))
        && let Payload::Floor(floor) = &frame.payload
        && frame.place.is_some_and(|place| *floor <= log.border_below(place.position))
    {
        place.applied.floor = place.applied.floor.max(*floor);
    }
    Ok(())
}

fn at_image(
    machine: &mut dyn ErasedMachine,
    log: &Log,
    images: &Images,
    meta: &ImageMeta,
) -> Result<Option<Place>, OpenError> {
    let (Some(applied), Some(place)) = (meta.point.applied, place_of(meta)) else {
        return Ok(None);
    };
    if !holds(log, applied)? {
        return Ok(None);
    }
    let border = meta.point.border;
    let image = match images.load(border) {
        Ok(image) => image,
        Err(error) => {
            tracing::warn!(%border, %error, "image cannot be read and is not used");
            return Ok(None);
        }
    };
    match machine.load_image(image.meta.point, &image.machine) {
        Ok(()) => Ok(Some(place)),
        Err(error) => {
            tracing::warn!(%border, %error, "image is not accepted by the machine and is not used");
            Ok(None)
        }
    }
}
