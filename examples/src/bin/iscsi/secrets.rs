//! CHAP accounts from where other users of the machine do not see them: a file that nobody else may read, or the
//! environment.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use examples::ending::{Ending, failed, no_file, usage};
use initiator_core::Credentials;
use iscsi_proto::chap::ChapSecret;

use crate::args::Cli;

/// Bytes of a file of secrets that are looked at: more than any open-iscsi record has.
const MOST: u64 = 64 << 10;

/// What is known of the accounts of one kind of session.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    user: Option<String>,
    secret: Option<String>,
    /// The target's own, for mutual CHAP.
    target_user: Option<String>,
    target_secret: Option<String>,
}

impl Account {
    /// Fills what is missing.
    fn or(self, other: Self) -> Self {
        Self {
            user: self.user.or(other.user),
            secret: self.secret.or(other.secret),
            target_user: self.target_user.or(other.target_user),
            target_secret: self.target_secret.or(other.target_secret),
        }
    }

    /// The variables of libiscsi.
    fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            user: variable("LIBISCSI_CHAP_USERNAME"),
            secret: variable("LIBISCSI_CHAP_PASSWORD"),
            target_user: variable("LIBISCSI_CHAP_TARGET_USERNAME"),
            target_secret: variable("LIBISCSI_CHAP_TARGET_PASSWORD"),
        }
    }

    /// A file with the secret alone, or with settings as open-iscsi's records and `iscsid.conf` have them.
    fn of_file(text: &str, discovery: bool) -> Result<Self, &'static str> {
        let settings = || {
            text.lines().filter_map(|line| {
                let line = line.trim();
                let (key, value) = line.split_once('=').filter(|_| !line.starts_with('#'))?;
                Some((key.trim(), value.trim().to_owned()))
            })
        };
        let groups = ["node.session.auth.", "discovery.sendtargets.auth."];
        let is_record = settings().any(|(key, _)| groups.iter().any(|group| key.starts_with(group)));
        if !is_record {
            let secret = text.strip_suffix('\n').unwrap_or(text);
            let secret = secret.strip_suffix('\r').unwrap_or(secret);
            return match secret {
                "" => Err("it is empty: write the CHAP secret into it"),
                secret if secret.contains('\n') => {
                    Err("it has several lines: write the CHAP secret alone, or lines as open-iscsi has them, such as \
                         node.session.auth.password = SECRET")
                }
                secret => Ok(Self { secret: Some(secret.to_owned()), ..Self::default() }),
            };
        }
        let of_group = |group: &str| {
            let get = |name: &str| {
                let found = settings().rfind(|(key, _)| key.strip_prefix(group) == Some(name));
                // What a record has not set, iscsiadm writes as <empty>.
                found.map(|(_, value)| value).filter(|value| !value.is_empty() && value != "<empty>")
            };
            Self {
                user: get("username"),
                secret: get("password"),
                target_user: get("username_in"),
                target_secret: get("password_in"),
            }
        };
        let [node, discoveries] = groups.map(of_group);
        Ok(if discovery { discoveries.or(node) } else { node })
    }
}

/// The text of a file that its owner alone may read.
fn read_private(path: &str) -> Result<String, Ending> {
    let fail = |error| no_file(path, &error);
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if metadata.mode() & 0o077 != 0 {
        return Err(failed(format!(
            "{path} holds a secret and may be read or written by others: give it to its owner alone with `chmod 600 \
             {path}`"
        )));
    }
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

fn credentials(user: Option<String>, secret: Option<String>) -> Option<Credentials> {
    Some(Credentials { user: user?, secret: ChapSecret::new(secret?) })
}

/// Completes the accounts of a URL: what it does not say comes from the file of `--password-file`, and what that does
/// not say from the environment. `own` without a secret is a name alone.
pub(crate) fn complete(
    cli: &Cli,
    discovery: bool,
    own: Option<Credentials>,
    target: Option<Credentials>,
) -> Result<(Option<Credentials>, Option<Credentials>), Ending> {
    let file = match &cli.password_file {
        Some(path) => Account::of_file(&read_private(path)?, discovery)
            .map_err(|reason| usage(format!("{path} is no file of secrets: {reason}")))?,
        None => Account::default(),
    };
    let known = file.or(Account::of_environment(|name| std::env::var(name).ok().filter(|value| !value.is_empty())));
    let own = match own {
        Some(own) if !own.secret.as_bytes().is_empty() => Some(own),
        Some(own) => match credentials(Some(own.user.clone()), known.secret) {
            Some(own) => Some(own),
            None => {
                return Err(usage(format!(
                    "the account {} lacks its secret: give it by --password-file FILE or LIBISCSI_CHAP_PASSWORD, or \
                     write user%secret@host",
                    own.user
                )));
            }
        },
        None if known.user.is_none() && cli.password_file.is_some() => {
            return Err(usage("the secret of --password-file lacks its name: write user@host in the URL"));
        }
        None => credentials(known.user, known.secret),
    };
    // A target proves itself to somebody who has done so, too.
    let target = target.or_else(|| credentials(known.target_user, known.target_secret).filter(|_| own.is_some()));
    Ok((own, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_secret_alone_or_lines_of_open_iscsi() {
        let bare = |secret: &str| Account { secret: Some(secret.into()), ..Account::default() };
        assert_eq!(Account::of_file("a secret = of twelve\n", false), Ok(bare("a secret = of twelve")));
        assert_eq!(Account::of_file("no-newline", true), Ok(bare("no-newline")));
        assert!(Account::of_file("", false).is_err() && Account::of_file("one\ntwo\n", false).is_err());
        let record = "# a record\nnode.name = iqn.2026-11.example:disk\nnode.session.auth.authmethod = CHAP\n\
                      node.session.auth.username = alice\n node.session.auth.password=a secret=of hers \n\
                      node.session.auth.username_in = disk\nnode.session.auth.password_in = <empty>\n\
                      #node.session.auth.password = not this\ndiscovery.sendtargets.auth.username = bob\n\
                      discovery.sendtargets.auth.password = bobs\n";
        let node = Account::of_file(record, false).unwrap();
        assert_eq!((node.user.as_deref(), node.secret.as_deref()), (Some("alice"), Some("a secret=of hers")));
        assert_eq!((node.target_user.as_deref(), node.target_secret), (Some("disk"), None));
        let discovery = Account::of_file(record, true).unwrap();
        assert_eq!((discovery.user.as_deref(), discovery.secret.as_deref()), (Some("bob"), Some("bobs")));
    }

    #[test]
    fn the_environment_fills_what_a_file_leaves_open() {
        let environment = Account::of_environment(|name| Some(name.to_lowercase()));
        let account = Account { secret: Some("of the file".into()), ..Account::default() }.or(environment);
        assert_eq!(account.user.as_deref(), Some("libiscsi_chap_username"));
        assert_eq!(account.secret.as_deref(), Some("of the file"));
        assert_eq!(account.target_secret.as_deref(), Some("libiscsi_chap_target_password"));
    }
}
