//! `ramdisk serve`: exports LUNs until Ctrl-C.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use clap::ArgMatches;
use examples::ending::{Ending, failed};
use examples::layout::Layout;
use examples::output::{print, unprinted};
use examples::tell;
use iscsi_proto::datamover::MoverError;
use target_core::node::TargetConfig;
use target_core::server::{IserConfig, Server, ServerHandle};
use target_core::session::EndReason;

use crate::args::ServeArgs;
use crate::attach;
use crate::exports::configure;
use crate::iser::Provision;
use crate::options;
use crate::stats::StatsView;

/// How long initiators have to log out when the server ends.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// Tells the operator what goes wrong with RDMA, but not the same again and again.
#[derive(Default)]
struct Complaint(Mutex<String>);

impl Complaint {
    fn make(&self, text: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != text {
            tell!("{text}");
            text.clone_into(&mut last);
        }
    }
}

/// Binds the portals and starts the workers.
pub(crate) fn start(config: TargetConfig, workers: usize, iser: Option<IserConfig>) -> Result<ServerHandle, Ending> {
    let mut server = Server::builder(config).on_event(|event| {
        // Nobody may be reading any more; the disk is served all the same.
        tell!("{event}");
    });
    if workers > 0 {
        server = server.workers(workers);
    }
    if let Some(iser) = iser {
        let complaint = Arc::new(Complaint::default());
        let other = Arc::clone(&complaint);
        server = server
            .iser(iser)
            .on_refused(move |error| complaint.make(&format!("cannot take an RDMA connection: {error}")))
            .on_end(move |ends, reason| {
                if let EndReason::Transport(error @ MoverError::Rdma(_)) = reason {
                    other.make(&format!("lost {}: {error}", ends.peer.ip()));
                }
            });
    }
    server.start().map_err(failed)
}

/// Gives memory back to the system when many connections have ended: what lay between that of others is free, and the
/// heap keeps it.
#[derive(Default)]
struct Crowd {
    most: usize,
}

impl Crowd {
    /// So many connections fewer are worth a look at the heap.
    const MANY: usize = 64;

    fn look(&mut self, connections: usize) {
        self.most = self.most.max(connections);
        if self.most - connections >= Self::MANY {
            self.most = connections;
            iscsi_memory::trim_heap();
        }
    }
}

/// Whoever reads what the server prints. Its work is serving: when nobody reads any more, or nothing can be printed, it
/// says so once and goes on.
#[derive(Default)]
struct Audience {
    gone: bool,
}

impl Audience {
    fn is_there(&self) -> bool {
        !self.gone
    }

    fn hears(&mut self, printed: Result<(), Ending>) {
        if let Err(ending) = printed
            && !std::mem::replace(&mut self.gone, true)
        {
            tell!("ramdisk: {ending}; the disks are served all the same");
        }
    }
}

fn as_json(config: &TargetConfig) -> serde_json::Value {
    let targets: Vec<_> = config
        .nodes()
        .iter()
        .map(|node| {
            let portals: Vec<_> = node
                .portal_groups()
                .iter()
                .flat_map(|group| group.portals().iter().map(|portal| (group.tag(), portal)))
                .map(|(group, portal)| {
                    let service = portal.service().unwrap_or_default();
                    serde_json::json!({
                        "address": portal.bound_address().to_string(), "group": group, "iser": portal.iser(),
                        "tcp": service.tcp, "iwarp": service.iwarp, "verbs": service.verbs,
                    })
                })
                .collect();
            let luns: Vec<_> = node
                .luns()
                .iter()
                .map(|mapped| {
                    let bytes = mapped.unit.geometry().bytes();
                    serde_json::json!({ "lun": mapped.number, "bytes": bytes, "read_only": mapped.read_only })
                })
                .collect();
            serde_json::json!({ "name": node.name().to_string(), "portals": portals, "luns": luns })
        })
        .collect();
    serde_json::json!({ "targets": targets })
}

pub(crate) fn run(args: &ServeArgs, matches: &ArgMatches) -> Result<(), Ending> {
    let layout = Layout::of(options::gather(args, matches)?)?;
    let config = configure(&layout)?;
    let iser = Provision::of(&layout, &config)?;
    // The handler comes first: a Ctrl-C while the portals open must end the program cleanly, too.
    let (interrupt, interrupted) = mpsc::channel();
    ctrlc::set_handler(move || {
        // The receiver lives as long as this function; a second Ctrl-C finds it gone and has nothing to add.
        let _ = interrupt.send(());
    })
    .map_err(failed)?;
    let server = start(config, args.workers, iser.as_ref().map(Provision::config))?;
    let mut audience = Audience::default();
    let told = if args.json {
        format!("{:#}\n", as_json(server.target().config()))
    } else {
        let config = server.target().config();
        let iser = iser.as_ref().map_or_else(String::new, |iser| format!("{}\n\n", iser.told(config)));
        format!("{config}\n{iser}{}\nServing. Ctrl-C ends it.\n", attach::lines(config, &layout))
    };
    audience.hears(print(format_args!("{told}")).and_then(|()| {
        // Whoever waits for the last line through a pipe gets it now.
        std::io::stdout().flush().map_err(|error| unprinted(&error))
    }));
    let mut view = StatsView::new(std::io::stdout().is_terminal());
    let mut crowd = Crowd::default();
    while let Err(mpsc::RecvTimeoutError::Timeout) = interrupted.recv_timeout(Duration::from_secs(1)) {
        if args.stats && audience.is_there() {
            audience.hears(view.show(&server));
        }
        crowd.look(server.target().registry().connections());
    }
    if !args.json {
        audience.hears(print(format_args!("Ending: asking the initiators to log out.\n")));
    }
    server.stop(GRACE);
    Ok(())
}
