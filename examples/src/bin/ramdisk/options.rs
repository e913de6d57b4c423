//! The options of `ramdisk serve`: those of the file, then those of the command line.

use std::path::Path;

use clap::ArgMatches;
use examples::ending::{Ending, no_file, usage};
use examples::layout::{Options, TargetOptions};

use crate::args::ServeArgs;

fn read_file(path: &Path) -> Result<Options, Ending> {
    let text = std::fs::read_to_string(path).map_err(|error| no_file(path.display(), &error))?;
    Options::from_toml(&text).map_err(|bad| usage(format!("{}, {bad}", path.display())))
}

/// All that was asked for: the file's part first, the command line's behind it.
pub(crate) fn gather(args: &ServeArgs, matches: &ArgMatches) -> Result<Options, Ending> {
    let file = args.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    Ok(file.and(Options {
        portal: args.portal.clone(),
        rdma: args.rdma,
        registered_memory: args.registered_memory.clone(),
        target: in_order(args, matches),
        chap: args.chap.clone(),
        mutual_chap: args.mutual_chap.clone(),
        initiator: args.initiator.clone(),
        read_only: args.read_only,
        attribute: args.attribute.clone(),
        lasting_identity: args.lasting_identity,
    }))
}

/// Gives each `--lun` to the `--target` before it on the command line; LUNs before any target belong to one with a
/// made-up name.
fn in_order(args: &ServeArgs, matches: &ArgMatches) -> Vec<TargetOptions> {
    let places = |name: &str| matches.indices_of(name).into_iter().flatten();
    let targets = places("target").zip(&args.target).map(|(at, name)| (at, Ok(name)));
    let luns = places("lun").zip(&args.lun).map(|(at, lun)| (at, Err(lun)));
    let mut all: Vec<_> = targets.chain(luns).collect();
    all.sort_by_key(|(at, _)| *at);
    let mut options: Vec<TargetOptions> = Vec::new();
    for (_, item) in all {
        match item {
            Ok(name) => options.push(TargetOptions { name: Some(name.clone()), lun: Vec::new() }),
            Err(lun) => match options.last_mut() {
                Some(last) => last.lun.push(lun.clone()),
                None => options.push(TargetOptions { name: None, lun: vec![lun.clone()] }),
            },
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Job};
    use clap::{CommandFactory, FromArgMatches};
    use examples::attributes::Attributes;
    use examples::layout::{Layout, PortalSpec, RdmaChoice, StoreSpec, TargetLayout};

    fn laid_out(line: &str) -> Result<Layout, Ending> {
        let matches = Cli::command().try_get_matches_from(line.split(' ')).unwrap();
        let Job::Serve(args) = Cli::from_arg_matches(&matches).unwrap().job else { panic!("not serve") };
        Layout::of(gather(&args, matches.subcommand_matches("serve").unwrap())?)
    }

    #[test]
    fn luns_belong_to_the_target_before_them() {
        let layout =
            laid_out("ramdisk serve --target iqn.a --lun 1G --lun null:2G --target iqn.b --lun file:/x").unwrap();
        assert_eq!(layout.targets[0].luns, [StoreSpec::Ram(1 << 30), StoreSpec::Null(2 << 30)]);
        assert_eq!(
            layout.targets[1],
            TargetLayout { name: Some("iqn.b".into()), luns: vec![StoreSpec::File("/x".into())] }
        );
    }

    #[test]
    fn nothing_given_is_one_target_with_one_gibibyte() {
        let layout = laid_out("ramdisk serve").unwrap();
        assert_eq!(layout.portals, [PortalSpec { address: "127.0.0.1:3260".into(), iser: false }]);
        assert!(!layout.iser());
        assert_eq!(layout.targets, [TargetLayout { name: None, luns: vec![StoreSpec::Ram(1 << 30)] }]);
    }

    #[test]
    fn attributes_are_set_in_order() {
        let line = "ramdisk serve --attribute emulate_tas=1 --attribute tmr_cold_reset=0 --lasting-identity";
        let first = laid_out(line).unwrap();
        assert!(first.attributes.unit.emulate_tas && !first.attributes.node.tmr_cold_reset);
        assert!(first.lasting_identity);
        let last = laid_out("ramdisk serve --attribute stop_unit=1 --attribute stop_unit=0").unwrap();
        assert_eq!(last.attributes, Attributes::default());
        assert!(laid_out("ramdisk serve --attribute stop=1").unwrap_err().to_string().contains("stop_unit"));
    }

    #[test]
    fn iser_belongs_to_a_portal() {
        let layout =
            laid_out("ramdisk serve --portal a:1 --portal [::1]:2,iser --rdma both --registered-memory 1M").unwrap();
        assert_eq!(layout.portals[1], PortalSpec { address: "[::1]:2".into(), iser: true });
        assert_eq!(
            (layout.iser(), layout.rdma, layout.registered_memory),
            (true, Some(RdmaChoice::Both), Some(1 << 20))
        );
        let told = |line: &str| laid_out(line).unwrap_err().to_string();
        assert!(told("ramdisk serve --portal a:1 --rdma verbs").contains("--portal ADDR:PORT,iser"));
        assert!(told("ramdisk serve --registered-memory 1M").contains("--registered-memory is about iSER"));
        assert!(told("ramdisk serve --portal a:1,rdma").contains("write a:1, or a:1,iser"));
    }

    #[test]
    fn a_bad_size_and_a_bad_account_get_a_sentence() {
        assert!(laid_out("ramdisk serve --lun 12Q").unwrap_err().to_string().contains("12Q"));
        let told = |line: &str| laid_out(line).unwrap_err().to_string();
        assert!(told("ramdisk serve --chap nosecret").contains("USER:SECRET"));
        let short = told("ramdisk serve --chap alice:eleven-byte");
        assert!(short.contains("--chap alice: the secret has 11 bytes") && short.contains("12 to 255"), "{short}");
        assert!(!short.contains("eleven"), "no secret is shown");
        let one = told("ramdisk serve --chap alice:twelve-bytes --mutual-chap disk:twelve-bytes");
        assert!(one.contains("has the secret of alice"), "{one}");
    }
}
