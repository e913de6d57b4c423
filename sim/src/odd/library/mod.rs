//! Sessions and disks as applications have them, over the tokio driver, against the odd [target](super) behind several
//! portals: it redirects logins, its portals go, its command window closes and opens, it forgets what was not flushed,
//! answers late, and makes no sense where nobody needs it.
//!
//! Time stands still but for who waits, as in [`driven`](crate::driven), whose streams are used. What is looked at,
//! beside the data ([`crate::model`]): every call ends, and within its own time limit where it has one; what was
//! dropped before it could be sent is never sent; attempts go to the portals that the target and its silence leave.
//!
//! | part | what it is |
//! |---|---|
//! | `plan` | what a seed means |
//! | `host` | the target with its portals |
//! | `work` | the application |

mod host;
mod plan;
mod work;

use std::rc::Rc;
use std::time::Duration;

use initiator_core::{Portal, SessionConfig, Transport as By};
use iscsi_driver::Clock;
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::{Instant, timeout};

use crate::driven::{Fault, Log};
use crate::rng::Rng;
use crate::scenario::Kind;
use crate::trace::Trace;
use crate::transport::Transport;
use crate::world::{Failure, Report};
use host::{FIRST_PORT, Host};
use plan::LibraryPlan;
use work::Work;

/// No run takes longer.
const MOST_TIME: Duration = Duration::from_secs(6 * 3600);

/// Runs a seed, and prints its trace if asked for.
///
/// # Errors
/// What it found.
pub fn run(seed: u64, print: bool) -> Result<Report, Failure> {
    let trace = Trace::new(print);
    crate::world::caught((seed, Kind::Library, Transport::Tcp), &trace, || live(seed, &trace))
}

fn live(seed: u64, trace: &Trace) -> Result<Report, String> {
    // The clock's begin is before that of the runtime, whose time stands still from then on.
    let _ = Clock::process();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let fault = Fault::default();
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async { timeout(MOST_TIME, run_all(seed, trace, &fault)).await });
    {
        let _entered = runtime.enter();
        drop(local);
    }
    let report = result.map_err(|_| format!("work is left after {MOST_TIME:?}"))?;
    fault.get().map_or(Ok(report), Err)
}

async fn run_all(seed: u64, trace: &Trace, fault: &Fault) -> Report {
    let plan = Rc::new(LibraryPlan::of(seed));
    let begin = Instant::now();
    let log = Log::new(trace, begin);
    log.event(format_args!("{plan:?}"));
    let (host, serving) = Host::open(&plan, seed, &log, fault);
    let at = |number: usize| Portal { host: "127.0.0.1".into(), port: FIRST_PORT + number as u16 };
    let mut config = SessionConfig::new(at(0), "iqn.2026-11.example.sim:odd");
    config.portals = (1..plan.portals).map(at).collect();
    config.initiator_name = Some("iqn.2026-11.example.sim:library".into());
    config.isid = Some([0x80, 0, 0, 0, 3, 1]);
    config.transport = By::Tcp;
    config.offer = plan.odd.offer.clone();
    config.timeouts = plan.odd.timeouts;
    config.limits = plan.odd.limits;
    config.reconnect = plan.odd.reconnect;
    let work = Work::new(&plan, &host, &log, fault);
    work.clone().live(config, Rng::new(seed, 100)).await;
    host.end();
    serving.abort();
    let _ = serving.await;
    work.report(host.logins(), begin.elapsed())
}
