//! `ramdisk serve`: exports LUNs until Ctrl-C.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use clap::ArgMatches;
use examples::ending::{Ending, failed};
use target_core::node::TargetConfig;
use target_core::server::{Server, ServerHandle};

use crate::args::ServeArgs;
use crate::exports::configure;
use crate::layout::Layout;
use crate::stats::StatsView;

/// How long initiators have to log out when the server ends.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// Binds the portals and starts the workers.
pub(crate) fn start(config: TargetConfig, workers: usize) -> Result<ServerHandle, Ending> {
    let mut server = Server::builder(config);
    if workers > 0 {
        server = server.workers(workers);
    }
    server.start().map_err(failed)
}

/// What a person types on Linux to attach the disks of `name` at `portal`.
pub(crate) fn attach_lines(name: &str, portal: SocketAddr, layout: &Layout) -> String {
    // 0.0.0.0 is where we listen, not where anybody connects to.
    let host = if portal.ip().is_unspecified() { "THIS-MACHINE".to_owned() } else { portal.ip().to_string() };
    let portal =
        if host.contains(':') { format!("[{host}]:{}", portal.port()) } else { format!("{host}:{}", portal.port()) };
    // The configuration makes discovery authenticate like the rest, which open-iscsi keeps in a record of its own.
    let mut secrets: Vec<(&str, &str)> = Vec::new();
    if let Some(user) = layout.chap.first() {
        secrets.extend([("authmethod", "CHAP"), ("username", user.user.as_str()), ("password", "SECRET")]);
        if let Some(user) = &layout.mutual_chap {
            secrets.extend([("username_in", user.user.as_str()), ("password_in", "SECRET")]);
        }
    }
    let discovery = format!("  iscsiadm -m discoverydb -t sendtargets -p {portal}");
    let node = format!("  iscsiadm -m node -T {name} -p {portal}");
    let mut lines = String::new();
    if secrets.is_empty() {
        lines += &format!("  iscsiadm -m discovery -t sendtargets -p {portal}\n");
    } else {
        lines += &format!("{discovery} -o new\n");
        for (field, value) in &secrets {
            lines += &format!("{discovery} -o update -n discovery.sendtargets.auth.{field} -v {value}\n");
        }
        lines += &format!("{discovery} --discover\n");
    }
    for (field, value) in &secrets {
        lines += &format!("{node} -o update -n node.session.auth.{field} -v {value}\n");
    }
    lines + &format!("{node} --login\n")
}

fn print_json(config: &TargetConfig) {
    let targets: Vec<_> = config
        .nodes()
        .iter()
        .map(|node| {
            let portals: Vec<_> = node
                .portal_groups()
                .iter()
                .flat_map(|group| group.portals().iter().map(|portal| serde_json::json!({ "address": portal.bound_address().to_string(), "group": group.tag() })))
                .collect();
            let luns: Vec<_> = node
                .luns()
                .iter()
                .map(|mapped| serde_json::json!({ "lun": mapped.number, "bytes": mapped.unit.geometry().bytes(), "read_only": mapped.read_only }))
                .collect();
            serde_json::json!({ "name": node.name().to_string(), "portals": portals, "luns": luns })
        })
        .collect();
    println!("{:#}", serde_json::json!({ "targets": targets }));
}

pub(crate) fn run(args: &ServeArgs, matches: &ArgMatches) -> Result<(), Ending> {
    let layout = Layout::gather(args, matches)?;
    let config = configure(&layout)?;
    // The handler comes first: a Ctrl-C while the portals open must end the program cleanly, too.
    let (interrupt, interrupted) = mpsc::channel();
    ctrlc::set_handler(move || {
        // The receiver lives as long as this function; a second Ctrl-C finds it gone and has nothing to add.
        let _ = interrupt.send(());
    })
    .map_err(failed)?;
    let server = start(config, args.workers)?;
    if args.json {
        print_json(server.target().config());
    } else {
        println!("{}", server.target().config());
        println!("To attach on Linux (open-iscsi):");
        for node in server.target().config().nodes() {
            if let Some(portal) = node.portal_groups().iter().flat_map(|group| group.portals()).next() {
                print!("{}", attach_lines(node.name().as_str(), portal.bound_address(), &layout));
            }
        }
        println!("\nServing. Ctrl-C ends it.");
    }
    // Whoever waits for the last line through a pipe gets it now.
    std::io::stdout().flush().map_err(failed)?;
    let mut view = StatsView::new(std::io::stdout().is_terminal());
    loop {
        let wait = if args.stats { Duration::from_secs(1) } else { Duration::MAX };
        match interrupted.recv_timeout(wait) {
            Err(mpsc::RecvTimeoutError::Timeout) => view.show(&server),
            _ => break,
        }
    }
    if !args.json {
        println!("Ending: asking the initiators to log out.");
    }
    server.stop(GRACE);
    Ok(())
}
