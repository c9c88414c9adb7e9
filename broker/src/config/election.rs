//! How fast a leader that is gone is noticed. Why these values: `docs/adr/0006-failover.md`.

use std::time::Duration;

use quorate_raft::FastPath;
use serde::{Deserialize, Serialize};

use super::{ConfigError, check, units};

/// The `[election]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ElectionConfig {
    /// `lan` (default) or `cautious`: which timers hold where none is given below. All nodes of a group should have the same.
    pub profile: Profile,
    /// Time between the leader's heartbeats. Default `0ms`: the profile's (`lan` 50ms, `cautious` 150ms); at most a third of `timeout_min`.
    #[serde(with = "units::duration")]
    pub heartbeat: Duration,
    /// Shortest election timeout. Default `0ms`: the profile's (`lan` 150ms, `cautious` 600ms). Below the longest stall of the machine,
    /// leaders are deposed for nothing.
    #[serde(with = "units::duration")]
    pub timeout_min: Duration,
    /// Longest election timeout, which is also how long a vote is kept from others. Default `0ms`: the profile's (`lan` 250ms,
    /// `cautious` 1200ms). Adds to every failover but that of a crash.
    #[serde(with = "units::duration")]
    pub timeout_max: Duration,
    /// Elect a new leader at once when the old one's process is gone and another node sees it too. Default true. Off, every failover
    /// waits for its timeout; switch it off where something else than the node answers at its peer address.
    pub fast_path: bool,
    /// Connects in a row that the leader's peer address must refuse. Default 3. Fewer see a crash sooner, and in a firewall too.
    pub fast_path_probes: u32,
    /// Pause between two of them. Default `5ms`.
    #[serde(with = "units::duration")]
    pub fast_path_pause: Duration,
}

/// A set of timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Machines of one site that are not starved.
    Lan,
    /// Shared or overcommitted machines, and longer links.
    Cautious,
}

/// The timers that hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Shortest election timeout.
    pub timeout_min: Duration,
    /// Longest election timeout.
    pub timeout_max: Duration,
}

impl Default for ElectionConfig {
    fn default() -> Self {
        let FastPath { probes, pause, rest: _ } = FastPath::default();
        Self {
            profile: Profile::Lan,
            heartbeat: Duration::ZERO,
            timeout_min: Duration::ZERO,
            timeout_max: Duration::ZERO,
            fast_path: true,
            fast_path_probes: probes,
            fast_path_pause: pause,
        }
    }
}

impl Profile {
    fn timers(self) -> Timers {
        let millis = Duration::from_millis;
        match self {
            Self::Lan => Timers { heartbeat: millis(50), timeout_min: millis(150), timeout_max: millis(250) },
            Self::Cautious => Timers { heartbeat: millis(150), timeout_min: millis(600), timeout_max: millis(1200) },
        }
    }
}

impl ElectionConfig {
    /// The profile's timers, and what was given instead.
    pub fn timers(&self) -> Timers {
        let profile = self.profile.timers();
        let given = |own: Duration, default: Duration| if own.is_zero() { default } else { own };
        Timers {
            heartbeat: given(self.heartbeat, profile.heartbeat),
            timeout_min: given(self.timeout_min, profile.timeout_min),
            timeout_max: given(self.timeout_max, profile.timeout_max),
        }
    }

    pub(super) fn fast_path(&self) -> Option<FastPath> {
        let settings = FastPath { probes: self.fast_path_probes, pause: self.fast_path_pause, ..FastPath::default() };
        self.fast_path.then_some(settings)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let timers = self.timers();
        let text = units::format_duration;
        check(timers.heartbeat <= timers.timeout_min / 3, "election.heartbeat", || {
            format!(
                "{} must be at most a third of election.timeout_min ({})",
                text(timers.heartbeat),
                text(timers.timeout_min)
            )
        })?;
        check(timers.timeout_min < timers.timeout_max, "election.timeout_max", || {
            format!(
                "{} must be longer than election.timeout_min ({}), or votes split again and again",
                text(timers.timeout_max),
                text(timers.timeout_min)
            )
        })?;
        check((1..=20).contains(&self.fast_path_probes), "election.fast_path_probes", || {
            format!("{} is out of range; write 1 to 20", self.fast_path_probes)
        })?;
        let pause = self.fast_path_pause;
        check(
            !pause.is_zero() && pause * self.fast_path_probes <= timers.timeout_min,
            "election.fast_path_pause",
            || {
                format!(
                    "{} must be more than 0, and {} of it at most election.timeout_min ({})",
                    text(pause),
                    self.fast_path_probes,
                    text(timers.timeout_min)
                )
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_gives_the_timers_and_what_is_written_overrides_them() {
        let lan = ElectionConfig::default();
        assert_eq!(lan.timers(), Profile::Lan.timers());
        let cautious = ElectionConfig { profile: Profile::Cautious, ..ElectionConfig::default() };
        assert_eq!(cautious.timers().timeout_max, Duration::from_millis(1200));
        let own = ElectionConfig { heartbeat: Duration::from_millis(40), ..cautious };
        let expected = Timers { heartbeat: Duration::from_millis(40), ..Profile::Cautious.timers() };
        assert_eq!(own.timers(), expected);
        for config in [lan, own] {
            assert!(config.check().is_ok());
        }
    }

    #[test]
    fn timers_and_probes_that_cannot_work_are_named() {
        let problem = |change: fn(&mut ElectionConfig)| {
            let mut config = ElectionConfig::default();
            change(&mut config);
            config.check().expect_err("it cannot work").key
        };
        assert_eq!(problem(|c| c.heartbeat = Duration::from_millis(60)), "election.heartbeat");
        assert_eq!(problem(|c| c.timeout_min = Duration::from_millis(250)), "election.timeout_max");
        assert_eq!(problem(|c| c.fast_path_probes = 0), "election.fast_path_probes");
        assert_eq!(problem(|c| c.fast_path_pause = Duration::from_millis(60)), "election.fast_path_pause");
    }

    #[test]
    fn the_fast_path_can_be_switched_off() {
        assert!(ElectionConfig::default().fast_path().is_some());
        assert_eq!(ElectionConfig { fast_path: false, ..ElectionConfig::default() }.fast_path(), None);
    }
}
