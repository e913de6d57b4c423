//! What happens to links and to the target at a time that nobody chose.

use std::time::Duration;

use super::World;
use super::owing::Owing;
use super::server::Server;
use crate::rng::Rng;
use crate::workload::Happened;

/// What becomes of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is cut.
    Cut,
    /// Its initiator hears nothing any more, and goes on sending.
    Deaf,
    /// Its initiator sends nothing any more of what RDMA Reads ask it for.
    Owing,
}

/// What happens to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happening {
    /// Its process dies, and what was not durable.
    Crash,
    /// A LUN that nobody uses comes or goes.
    SpareLun,
    /// The LUN of this disk goes.
    Remove(usize),
    /// It comes back.
    Restore(usize),
    /// A server stops, and starts again.
    Stop(usize),
    /// What is left of a server that has stopped goes.
    EndStopped(usize),
    /// A server gets the disks that it had not from the start.
    Late(usize),
    /// The disk grows.
    Grow(usize),
}

/// The LUN that nobody uses.
const SPARE: u16 = 77;

impl World<'_> {
    pub(super) fn plan_events(&mut self) {
        let rng = &mut Rng::new(self.scenario.seed, 13);
        let disks = self.disks.len() as u64;
        let mut add = |rng: &mut Rng, (count, within): (u64, Duration), what: &dyn Fn(&mut Rng) -> Happening| {
            for _ in 0..count {
                let wait = Duration::from_micros(rng.magnitude(1, within.as_micros() as u64));
                let what = what(rng);
                self.events_at.push((self.now + wait, what));
            }
        };
        add(rng, self.scenario.crashes, &|_| Happening::Crash);
        let servers = self.servers.len() as u64;
        add(rng, self.scenario.stops, &|rng| Happening::Stop(rng.below(servers) as usize));
        if self.scenario.late_luns {
            for server in 1..servers {
                add(rng, (1, Duration::from_secs(60)), &|_| Happening::Late(server as usize));
            }
        }
        add(rng, self.scenario.changes, &|rng| match rng.below(4) {
            0 => Happening::Remove(rng.below(disks) as usize),
            1 => Happening::Grow(rng.below(disks) as usize),
            _ => Happening::SpareLun,
        });
    }

    /// Links meet what is to become of them by now.
    pub(super) fn meet_fates(&mut self) {
        let now = self.now;
        for (_, number, fate) in self.fates.extract_if(.., |(at, ..)| *at <= now) {
            let Some(network) = &mut self.networks[number] else { continue };
            match fate {
                Fate::Cut => network.cut(now),
                Fate::Deaf => {
                    self.trace.event(format_args!("link {number}: its initiator goes deaf"));
                    network.deafen(now);
                    self.deafened.push(number);
                    self.deaf += 1;
                }
                Fate::Owing => {
                    self.trace.event(format_args!("link {number}: its initiator owes what Reads ask for"));
                    network.withhold_reads();
                    self.deafened.push(number);
                    self.owing.push(Owing::over(number));
                    self.deaf += 1;
                }
            }
        }
    }

    /// What is to happen by now happens.
    pub(super) fn happen(&mut self) -> Result<(), String> {
        let now = self.now;
        while let Some(at) = self.events_at.iter().position(|(at, _)| *at <= now) {
            let (_, happening) = self.events_at.swap_remove(at);
            self.change(happening)?;
        }
        Ok(())
    }

    fn change(&mut self, happening: Happening) -> Result<(), String> {
        let now = self.now;
        self.trace.event(format_args!("{happening:?}"));
        let changed = match happening {
            Happening::Crash => return self.crash(),
            Happening::Stop(server) => {
                self.stop(server);
                None
            }
            Happening::EndStopped(server) => {
                self.end_stopped(server);
                None
            }
            Happening::Late(server) => {
                self.complete_luns(server);
                // Of this one only, and the others are told of nothing.
                self.changes += 1;
                None
            }
            Happening::SpareLun => {
                for luns in self.servers.iter().flat_map(Server::all_luns) {
                    if luns.get(SPARE).is_some() {
                        luns.remove(SPARE);
                    } else {
                        luns.insert(SPARE, self.units[0].clone(), true);
                    }
                }
                Some((None, Happened::LunsChanged))
            }
            Happening::Remove(at) => {
                for luns in self.servers.iter().flat_map(Server::all_luns) {
                    luns.remove(self.disks[at].number);
                }
                self.disks[at].was_away.set(true);
                let away = Duration::from_millis(self.rng.magnitude(1, 10_000));
                self.events_at.push((now + away, Happening::Restore(at)));
                Some((None, Happened::LunsChanged))
            }
            Happening::Restore(at) => {
                for luns in self.servers.iter().flat_map(Server::all_luns) {
                    luns.insert(self.disks[at].number, self.units[at].clone(), false);
                }
                Some((None, Happened::LunsChanged))
            }
            Happening::Grow(at) => {
                let blocks = self.rng.between(1, 64);
                let grows = self.disks[at].grow(blocks);
                if grows {
                    self.units[at].refresh_geometry();
                }
                grows.then_some((Some(self.disks[at].number), Happened::Grown))
            }
        };
        if let Some((lun, happened)) = changed {
            self.changes += 1;
            self.attentions.post(lun, happened, now, now);
        }
        Ok(())
    }

    /// A server has every LUN.
    fn complete_luns(&self, server: usize) {
        let luns = self.servers[server].luns();
        for (disk, unit) in self.disks.iter().zip(&self.units) {
            if luns.get(disk.number).is_none() {
                luns.insert(disk.number, unit.clone(), false);
            }
        }
    }

    /// Every server is there, and every LUN.
    pub(super) fn settle_changes(&mut self) {
        for server in 0..self.servers.len() {
            self.end_stopped(server);
            self.complete_luns(server);
            self.servers[server].come_up();
        }
    }
}
