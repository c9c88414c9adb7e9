//! Where the engine's words go.

use crate::workload::Progress;

/// A place to show things. Called from many tasks; must not block for long.
pub trait Screen: Send + Sync + 'static {
    /// A milestone: one line of the run's story.
    fn line(&self, text: &str);

    /// Something that needs the user's eye, on standard error whatever else goes where.
    fn warn(&self, text: &str);

    /// The load under way, some times a second; `None` takes the display away.
    fn progress(&self, progress: Option<&Progress>);

    /// The one line that a program waiting for the group reads, on standard output.
    fn ready(&self, text: &str);
}
