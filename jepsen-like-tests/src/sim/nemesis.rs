//! The one who hurts the group: lanes of faults, drawn from the seed, side by side.
//!
//! A lane waits, draws a fault of the scenario's mix, lets it happen and takes it back, again and again until the safety phase
//! ends. Two lanes make pairs: a cut while a node is down, a slow disk during an image. Every fault is one the group
//! promises to survive: any number of killed processes and power cuts, any network, but only one lost disk at a time.

use std::time::Duration;

use quorate_raft::{
    Position,
    disk::sim::{Faults, Keep},
};
use tokio::time::sleep;

use super::{
    dice::Dice,
    trace::Event,
    world::{Death, Subject, World},
};

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The leader's process is killed.
    KillLeader,
    /// Any process is killed.
    KillAny,
    /// All processes are killed at once.
    KillAll,
    /// One machine loses power.
    PowerOne,
    /// The leader's machine loses power and is back before anyone misses it.
    PowerLeaderBriefly,
    /// A majority of machines loses power at once.
    PowerMajority,
    /// All machines lose power at once.
    PowerAll,
    /// A node is shut down in order and started again.
    Restart,
    /// Leadership is handed over on demand.
    Transfer,
    /// The leader is cut off from everyone.
    IsolateLeader,
    /// Any node is cut off from everyone.
    IsolateAny,
    /// Two nodes cannot talk to each other.
    CutPair,
    /// One direction between two nodes is dead.
    OneWay,
    /// A link goes away and comes back, many times.
    Flap,
    /// A firewall between two nodes rejects: each looks to the other as if its process had died.
    Reject,
    /// Connections stall and break, and latency grows.
    Weather,
    /// A disk needs up to 400 ms for each sync.
    SlowDisk,
    /// All disks do.
    SlowDisks,
    /// A node is away while the floor passes it: it comes back by an image.
    FallBehind,
    /// And is cut again while the image is installed.
    CutInInstall,
    /// A node's disk is replaced by an empty one: it comes back as another node.
    Wipe,
    /// A disk refuses to sync: the process must stop, and find out what it has when it is back.
    FailedSync,
    /// A disk refuses to read for a while.
    FailedRead,
    /// A disk is full for a while.
    FullDisk,
    /// While a node is down in good order, a bit of its log, index or images flips.
    Rot,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 25] = [
        Self::KillLeader,
        Self::KillAny,
        Self::KillAll,
        Self::PowerOne,
        Self::PowerLeaderBriefly,
        Self::PowerMajority,
        Self::PowerAll,
        Self::Restart,
        Self::Transfer,
        Self::IsolateLeader,
        Self::IsolateAny,
        Self::CutPair,
        Self::OneWay,
        Self::Flap,
        Self::Reject,
        Self::Weather,
        Self::SlowDisk,
        Self::SlowDisks,
        Self::FallBehind,
        Self::CutInInstall,
        Self::Wipe,
        Self::FailedSync,
        Self::FailedRead,
        Self::FullDisk,
        Self::Rot,
    ];

    /// Its name in traces and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillLeader => "kill leader",
            Self::KillAny => "kill any",
            Self::KillAll => "kill all",
            Self::PowerOne => "power cut of one",
            Self::PowerLeaderBriefly => "brief power cut of the leader",
            Self::PowerMajority => "power cut of a majority",
            Self::PowerAll => "power cut of all",
            Self::Restart => "restart in order",
            Self::Transfer => "transfer",
            Self::IsolateLeader => "isolate leader",
            Self::IsolateAny => "isolate any",
            Self::CutPair => "cut a pair",
            Self::OneWay => "cut one way",
            Self::Flap => "flapping link",
            Self::Reject => "rejecting firewall",
            Self::Weather => "bad weather",
            Self::SlowDisk => "slow disk",
            Self::SlowDisks => "slow disks",
            Self::FallBehind => "fall behind the floor",
            Self::CutInInstall => "cut during image install",
            Self::Wipe => "wipe",
            Self::FailedSync => "failed sync",
            Self::FailedRead => "failed read",
            Self::FullDisk => "full disk",
            Self::Rot => "rot",
        }
    }
}

/// One lane: faults one after another, for ever. Drop it to end it, then [`World::heal`].
pub async fn lane<S: Subject>(world: World<S>, number: u16) {
    let mut lane = Lane { dice: Dice::new(world.scenario().seed, &format!("nemesis {number}")), world, number };
    loop {
        sleep(lane.dice.millis(100..=3000)).await;
        let kind = lane.dice.pick(&lane.world.scenario().faults);
        lane.strike(kind).await;
    }
}

/// Moves the floor from time to time, keeping a few segments. Runs beside the lanes.
pub async fn retention<S: Subject>(world: World<S>) {
    let mut dice = Dice::new(world.scenario().seed, "retention");
    loop {
        sleep(dice.millis(500..=4000)).await;
        let keep = dice.within(1..=6);
        move_floor(&world, keep).await;
    }
}

/// Damages consume queue records from time to time, of the leader more often than not. Runs beside the lanes, in half of all runs. No node
/// may end over it as long as another one has the records.
pub async fn queue_rot<S: Subject>(world: World<S>) {
    let mut dice = Dice::new(world.scenario().seed, "queue rot");
    if !dice.chance(50) {
        return;
    }
    loop {
        sleep(dice.millis(100..=2000)).await;
        let leader = world.leader().map(|(number, _)| number).filter(|_| dice.chance(60));
        let any = dice.pick(&world.numbers());
        world.rot_queue(leader.unwrap_or(any), dice.draw());
    }
}

/// Removes nodes and adds them again, one at a time and in spite of the lanes' faults. A machine that was removed comes back with an empty disk
/// and under its old number, which is the next best thing to a new one. Runs beside the lanes, in the runs that ask for it.
pub async fn membership<S: Subject>(world: World<S>) {
    if !world.scenario().members {
        return;
    }
    let mut dice = Dice::new(world.scenario().seed, "membership");
    loop {
        sleep(dice.millis(300..=2500)).await;
        let any = dice.pick(&world.numbers());
        // Its disk is given up with it, so the group must have all the others.
        if world.survives_loss(any) {
            world.witness().note(Event::Fault { lane: u16::MAX, name: "remove" });
            world.expel(any).await;
        }
        sleep(dice.millis(10..=1500)).await;
        world.start(any);
        world.admit_all().await;
    }
}

/// Proposes a floor that keeps about this many segments.
async fn move_floor<S: Subject>(world: &World<S>, keep: u64) {
    if !world.scenario().retention {
        return;
    }
    let Some((_, leader)) = world.leader() else { return };
    let end = leader.group.status().end.0;
    let floor = Position(end.saturating_sub(keep * world.scenario().segment_bytes));
    tokio::select! {
        biased;
        () = leader.death.cancelled() => {}
        // Refused or unknown: the next one will do.
        () = async {
            if let Some(floor) = S::before_floor(&leader, floor).await {
                let _ = leader.group.propose_floor(floor).await;
            }
        } => {}
    }
}

struct Lane<S: Subject> {
    world: World<S>,
    dice: Dice,
    number: u16,
}

impl<S: Subject> Lane<S> {
    fn any(&mut self) -> u16 {
        self.dice.pick(&self.world.numbers())
    }

    fn leader(&mut self) -> u16 {
        self.world.leader().map_or_else(|| self.any(), |(number, _)| number)
    }

    fn shuffled(&mut self) -> Vec<u16> {
        let mut numbers = self.world.numbers();
        for end in (1..numbers.len()).rev() {
            numbers.swap(end, self.dice.below(end as u64 + 1) as usize);
        }
        numbers
    }

    /// A power cut of these nodes; a kill where the flush mode does not promise to survive it.
    fn power(&mut self, nodes: &[u16]) -> Death {
        let keep = self.dice.pick(&[Keep::Nothing, Keep::Prefix, Keep::Sectors]);
        if self.world.survives_power_cut(nodes) { Death::Power(keep) } else { Death::Kill }
    }

    async fn strike(&mut self, kind: Kind) {
        self.world.witness().note(Event::Fault { lane: self.number, name: kind.name() });
        match kind {
            Kind::KillLeader => {
                let leader = self.leader();
                self.end_for(&[leader], Death::Kill, 10..=2000).await;
            }
            Kind::KillAny => {
                let any = self.any();
                self.end_for(&[any], Death::Kill, 10..=2000).await;
            }
            Kind::KillAll => {
                let all = self.world.numbers();
                self.end_for(&all, Death::Kill, 10..=1000).await;
            }
            Kind::PowerOne => {
                let any = self.any();
                let power = self.power(&[any]);
                self.end_for(&[any], power, 10..=3000).await;
            }
            Kind::PowerLeaderBriefly => {
                let leader = self.leader();
                let power = self.power(&[leader]);
                self.end_for(&[leader], power, 1..=50).await;
            }
            Kind::PowerMajority => {
                let mut nodes = self.shuffled();
                nodes.truncate(nodes.len() / 2 + 1);
                let power = self.power(&nodes);
                self.end_for(&nodes, power, 10..=1000).await;
            }
            Kind::PowerAll => {
                let all = self.world.numbers();
                let power = self.power(&all);
                self.end_for(&all, power, 10..=1000).await;
            }
            Kind::Restart => {
                let (any, pause) = (self.any(), self.dice.millis(10..=500));
                self.world.restart(any, pause, None);
                sleep(pause * 2).await;
            }
            Kind::Transfer => self.transfer().await,
            Kind::IsolateLeader => {
                let leader = self.leader();
                self.isolate(leader).await;
            }
            Kind::IsolateAny => {
                let any = self.any();
                self.isolate(any).await;
            }
            Kind::CutPair => {
                let nodes = self.shuffled();
                self.cut(&[(nodes[0], nodes[1]), (nodes[1], nodes[0])], 50..=4000).await;
            }
            Kind::OneWay => {
                let nodes = self.shuffled();
                self.cut(&[(nodes[0], nodes[1])], 50..=4000).await;
            }
            Kind::Flap => {
                let nodes = self.shuffled();
                for _ in 0..self.dice.within(3..=12) {
                    self.cut(&[(nodes[0], nodes[1]), (nodes[1], nodes[0])], 20..=500).await;
                    sleep(self.dice.millis(20..=500)).await;
                }
            }
            Kind::Reject => {
                let nodes = self.shuffled();
                self.world.firewall(nodes[0], nodes[1], true);
                sleep(self.dice.millis(20..=4000)).await;
                self.world.firewall(nodes[0], nodes[1], false);
            }
            Kind::Weather => {
                let (latency, trouble) = (self.dice.millis(2..=80), self.dice.within(0..=30) as u32);
                self.world.weather(latency, trouble);
                sleep(self.dice.millis(500..=4000)).await;
                self.world.weather(self.world.scenario().latency.1, 0);
            }
            Kind::SlowDisk => {
                let any = self.any();
                self.slow(&[any]).await;
            }
            Kind::SlowDisks => {
                let all = self.world.numbers();
                self.slow(&all).await;
            }
            Kind::FallBehind => {
                let any = self.any();
                self.fall_behind(any).await;
            }
            Kind::CutInInstall => self.cut_in_install().await,
            Kind::Wipe => self.wipe().await,
            Kind::FailedSync => self.bad_disk(|faults| faults.sync_error = true).await,
            Kind::FailedRead => self.bad_disk(|faults| faults.read_error = true).await,
            Kind::FullDisk => self.bad_disk(|faults| faults.capacity = Some(0)).await,
            Kind::Rot => self.rot().await,
        }
    }

    /// Ends processes and starts each again after a while of its own.
    async fn end_for(&mut self, nodes: &[u16], how: Death, down_ms: std::ops::RangeInclusive<u64>) {
        let mut longest = Duration::ZERO;
        for number in nodes {
            let delay = self.dice.millis(down_ms.clone());
            if self.world.end(*number, how) {
                self.world.start_later(*number, delay);
            }
            longest = longest.max(delay);
        }
        sleep(longest).await;
    }

    async fn cut(&mut self, directions: &[(u16, u16)], millis: std::ops::RangeInclusive<u64>) {
        for (from, to) in directions {
            self.world.link(*from, *to, false);
        }
        sleep(self.dice.millis(millis)).await;
        for (from, to) in directions {
            self.world.link(*from, *to, true);
        }
    }

    async fn isolate(&mut self, node: u16) {
        let others: Vec<u16> = self.world.numbers().into_iter().filter(|other| *other != node).collect();
        let directions: Vec<(u16, u16)> = others.iter().flat_map(|other| [(node, *other), (*other, node)]).collect();
        self.cut(&directions, 50..=5000).await;
    }

    async fn slow(&mut self, nodes: &[u16]) {
        let longest = self.dice.millis(50..=400);
        for number in nodes {
            self.world.sync_time(*number, (longest / 8, longest));
        }
        sleep(self.dice.millis(500..=4000)).await;
        for number in nodes {
            self.world.sync_time(*number, self.world.scenario().sync);
        }
    }

    async fn transfer(&mut self) {
        let Some((_, leader)) = self.world.leader() else { return };
        tokio::select! {
            biased;
            () = leader.death.cancelled() => {}
            // A leader that is none any more says so; nothing depends on it.
            _ = leader.group.transfer(None) => {}
        }
    }

    /// Keeps a node away until the others have moved the floor past it.
    async fn fall_behind(&mut self, node: u16) {
        let power = self.power(&[node]);
        self.world.end(node, power);
        for _ in 0..3 {
            sleep(self.dice.millis(300..=1500)).await;
            move_floor(&self.world, 0).await;
        }
        self.world.start(node);
    }

    async fn cut_in_install(&mut self) {
        let node = self.any();
        self.fall_behind(node).await;
        for _ in 0..self.dice.within(1..=4) {
            sleep(self.dice.millis(1..=300)).await;
            let power = self.power(&[node]);
            self.end_for(&[node], power, 1..=100).await;
        }
    }

    /// Replaces a disk, if the group has all the others: a second lost disk before the first is replaced is not survivable.
    async fn wipe(&mut self) {
        let any = self.any();
        if !self.world.survives_loss(any) {
            return;
        }
        self.world.wipe(any);
        sleep(self.dice.millis(10..=1000)).await;
        self.world.start(any);
    }

    /// Lets a disk fail for a while. Its process may end by itself; then it is started again and again until the disk is well.
    async fn bad_disk(&mut self, change: impl FnOnce(&mut Faults)) {
        let any = self.any();
        // A node whose sync has failed does not vote for a while, as one with a new disk: of both, two are lost at once.
        let is_spare = match self.world.scenario().members {
            true => self.world.survives_loss(any),
            false => !self.world.awaits_a_new_disk(),
        };
        if !is_spare {
            return;
        }
        self.world.fail_disk(any, change);
        sleep(self.dice.millis(50..=2000)).await;
        self.world.mend_disk(any);
        sleep(self.dice.millis(500..=1000)).await;
    }

    /// Damages one file of one node, as rarely as a wipe: whoever refuses to start over it comes back with an empty disk.
    async fn rot(&mut self) {
        let any = self.any();
        if !self.world.survives_loss(any) {
            return;
        }
        let pause = self.dice.millis(10..=500);
        self.world.restart(any, pause, Some(self.dice.draw()));
        sleep(pause * 2).await;
    }
}
