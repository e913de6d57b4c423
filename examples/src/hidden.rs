//! Arguments that other users of the machine are not to read in the list of processes.
//!
//! A program cannot change what the system shows of its arguments, but it can begin anew with others: it executes
//! itself with the secrets struck out, and has the true arguments in its environment, which only the same user and the
//! superuser may read. For the moment before that, and in the history of the shell, they are to be seen: a file or the
//! environment is the better place.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The variable with the true arguments, as JSON, behind the number of the process that they are for.
const VARIABLE: &str = "ISCSI_RS_ARGUMENTS";
const STRUCK_OUT: &str = "***";

/// The arguments of this program, its name first. `shown` says how an argument is to be shown, given the one before
/// it; `None` for one that has no secret.
#[must_use]
pub fn arguments(shown: impl Fn(Option<&str>, &str) -> Option<String>) -> Vec<OsString> {
    let own = std::process::id();
    if let Ok(text) = std::env::var(VARIABLE)
        && let Ok((process, arguments)) = serde_json::from_str::<(u32, Vec<String>)>(&text)
        && process == own
    {
        return arguments.into_iter().map(OsString::from).collect();
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    // Those that are no text stay as they are, and so do all others then.
    let Some(texts) = arguments.iter().map(|argument| argument.to_str()).collect::<Option<Vec<_>>>() else {
        return arguments;
    };
    let before = std::iter::once(None).chain(texts.iter().copied().map(Some));
    let instead: Vec<_> = texts.iter().zip(before).map(|(argument, before)| shown(before, argument)).collect();
    if instead.iter().any(Option::is_some)
        && let Ok(program) = std::env::current_exe()
        && let Ok(text) = serde_json::to_string(&(own, &texts))
    {
        let mut visible = instead.into_iter().zip(&texts).map(|(instead, own)| instead.unwrap_or((*own).to_owned()));
        let name = visible.next().unwrap_or_default();
        // It returns only where it fails; then they are shown, as they were before.
        let _ = Command::new(program).arg0(name).args(visible).env(VARIABLE, text).exec();
    }
    arguments
}

/// `USER:SECRET` without its secret.
#[must_use]
pub fn account(text: &str) -> Option<String> {
    text.split_once(':').map(|(user, _)| format!("{user}:{STRUCK_OUT}"))
}

/// What stands before the first slash, and the rest.
fn split_path(place: &str) -> (&str, &str) {
    place.find('/').map_or((place, ""), |at| place.split_at(at))
}

/// A URL, or the address of a portal, without the secrets in it; `None` if there are none.
#[must_use]
pub fn url(text: &str) -> Option<String> {
    let (scheme, rest) = text.find("://").map_or(("", text), |at| text.split_at(at + 3));
    let (place, options) = rest.split_once('?').map_or((rest, None), |(place, options)| (place, Some(options)));
    // A secret may hold slashes and @, and names of targets hold no @.
    let path = split_path(place.rsplit_once('@').map_or(place, |(_, behind)| behind)).1;
    let authority = &place[..place.len() - path.len()];
    let mut shown = scheme.to_owned();
    match authority.rsplit_once('@') {
        Some((user, host)) if user.contains(['%', ':']) => {
            let name = user.split(['%', ':']).next().unwrap_or_default();
            shown += &format!("{name}%{STRUCK_OUT}@{host}");
        }
        _ => shown += authority,
    }
    shown += path;
    if let Some(options) = options {
        let hide = |option: &str| match option.split_once('=') {
            Some((name @ "target_password", _)) => format!("{name}={STRUCK_OUT}"),
            _ => option.to_owned(),
        };
        let options: Vec<_> = options.split('&').map(hide).collect();
        shown += &format!("?{}", options.join("&"));
    }
    (shown != text).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_struck_out_and_nothing_else() {
        for plain in
            ["copy", "disk.img", "iscsi://host/iqn.2026-11.example:disk/0", "iscsi://alice@host/iqn.x/0?a=b", "host"]
        {
            assert_eq!(url(plain), None, "{plain}");
        }
        let shown = |text| url(text).unwrap();
        assert_eq!(shown("iscsi://alice%secret@host:3260/iqn.x:y/0"), "iscsi://alice%***@host:3260/iqn.x:y/0");
        assert_eq!(shown("iser://alice:sec%40ret@[::1]/iqn.x/0"), "iser://alice%***@[::1]/iqn.x/0");
        assert_eq!(shown("alice%secret@host"), "alice%***@host");
        for secret in ["se/cret", "se/cr@e/t", "s@e/cret", "/"] {
            let written = format!("iscsi://alice%{secret}@host:1/iqn.x:y/0?a=b");
            assert_eq!(url(&written).unwrap(), "iscsi://alice%***@host:1/iqn.x:y/0?a=b");
        }
        assert_eq!(
            shown("iscsi://host/iqn.x/0?target_user=t&target_password=u&initiator=i"),
            "iscsi://host/iqn.x/0?target_user=t&target_password=***&initiator=i"
        );
        assert_eq!(account("alice:secret").as_deref(), Some("alice:***"));
        assert_eq!(account("alice"), None);
    }
}
