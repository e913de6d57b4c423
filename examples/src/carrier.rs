//! What carries a session, in words.

/// `tcp`, `iser over iwarp (user space)` or `iser over verbs (rxe0)`, from a session's transport, its provider and the
/// RDMA device, if there is one.
///
/// ```
/// use examples::carrier::carrier;
/// assert_eq!(carrier("tcp", "tcp", None), "tcp");
/// assert_eq!(carrier("iser", "iwarp", None), "iser over iwarp (user space)");
/// assert_eq!(carrier("iser", "verbs", Some("rxe0")), "iser over verbs (rxe0)");
/// ```
#[must_use]
pub fn carrier(transport: &str, provider: &str, device: Option<&str>) -> String {
    match (provider, device) {
        _ if provider == transport => transport.to_owned(),
        (_, Some(device)) => format!("{transport} over {provider} ({device})"),
        ("iwarp", None) => format!("{transport} over iwarp (user space)"),
        (_, None) => format!("{transport} over {provider}"),
    }
}
