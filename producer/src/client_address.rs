//! Where a request came from. That is who is at the other end of the connection, unless it is a proxy whose word is
//! taken by the settings: then it is whom that proxy names. What a client claims for itself is never believed: the
//! chain of addresses is read from its end, and the first that is not a trusted proxy is the client.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::admission::settings::{AddressHeader, ProxyConfig};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// The most proxies that are looked behind.
const HOPS_MAX: usize = 32;

/// A network, or an address as the network that holds it alone.
pub fn network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Finds the addresses of clients.
#[derive(Clone, Debug)]
pub struct ClientAddress {
    trusted: Vec<IpNet>,
    header: AddressHeader,
}

impl ClientAddress {
    pub fn new(config: &ProxyConfig) -> Self {
        Self {
            trusted: config
                .trusted
                .iter()
                .filter_map(|text| network(text))
                .collect(),
            header: config.address_header,
        }
    }

    /// The client that is at the other end of this connection, or behind it.
    pub fn of(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let peer = peer?.to_canonical();
        if !self.trusts(peer) {
            return Some(peer);
        }
        let name = match self.header {
            AddressHeader::XForwardedFor => X_FORWARDED_FOR,
            AddressHeader::Forwarded => FORWARDED,
        };
        let mut client = peer;
        let lines = headers.get_all(name).into_iter();
        let lines: Vec<&str> = lines
            .map(|line| line.to_str().unwrap_or_default())
            .collect();
        let hops = lines.iter().rev().flat_map(|line| {
            let hops = match self.header {
                AddressHeader::XForwardedFor => line.split(',').collect(),
                AddressHeader::Forwarded => split_unquoted(line, ','),
            };
            hops.into_iter().rev()
        });
        for hop in hops.take(HOPS_MAX) {
            let named = match self.header {
                AddressHeader::XForwardedFor => address(hop),
                AddressHeader::Forwarded => forwarded_for(hop).and_then(address),
            };
            // Behind what cannot be read nothing is known; the last proxy that was named stands for it.
            let Some(named) = named else { break };
            client = named;
            if !self.trusts(named) {
                break;
            }
        }
        Some(client)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted
            .iter()
            .any(|network| network.contains(&address))
    }
}

/// The value of `for` in one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<&str> {
    split_unquoted(element, ';').into_iter().find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim();
        let bare = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value);
        name.trim().eq_ignore_ascii_case("for").then_some(bare)
    })
}

/// `10.0.0.1`, `10.0.0.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bracketed = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = match bracketed.unwrap_or(text).parse() {
        Ok(address) => address,
        Err(_) => text.parse::<SocketAddr>().ok()?.ip(),
    };
    Some(address.to_canonical())
}

/// Splits where the separator is not within quotes.
fn split_unquoted(text: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |character| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match character {
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        character == separator && !quoted
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(name: &'static str, lines: &[&str]) -> HeaderMap {
        let name = HeaderName::from_static(name);
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&name, HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    fn finder(header: AddressHeader) -> ClientAddress {
        ClientAddress::new(&ProxyConfig {
            trusted: vec!["10.0.0.0/8".into(), "2001:db8::1".into()],
            address_header: header,
        })
    }

    fn found(peer: &str, header: AddressHeader, headers: &HeaderMap) -> String {
        let peer = Some(peer.parse().unwrap());
        finder(header).of(peer, headers).unwrap().to_string()
    }

    #[test]
    fn a_chain_is_read_from_its_end() {
        for (peer, lines, client) in [
            ("192.0.2.1", &["198.51.100.7"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["198.51.100.7, 10.2.0.1"], "198.51.100.7"),
            (
                "10.0.0.1",
                &["1.1.1.1", "198.51.100.7,10.2.0.1"],
                "198.51.100.7",
            ),
            ("10.0.0.1", &["1.1.1.1, unknown, 10.2.0.1"], "10.2.0.1"),
            ("10.0.0.1", &["nonsense"], "10.0.0.1"),
            ("10.0.0.1", &["10.3.0.1, 10.2.0.1"], "10.3.0.1"),
            ("10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7"),
            ("10.0.0.1", &["[2001:db8::7]:4711"], "2001:db8::7"),
            ("::ffff:10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7"),
            ("2001:db8::1", &["2001:db8::7"], "2001:db8::7"),
        ] {
            let headers = headers("x-forwarded-for", lines);
            let found = found(peer, AddressHeader::XForwardedFor, &headers);
            assert_eq!(found, client, "{peer} {lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_as_its_rfc_writes_it() {
        for (line, client) in [
            ("for=198.51.100.7", "198.51.100.7"),
            ("For=\"[2001:db8::7]:47011\";proto=https", "2001:db8::7"),
            ("for=1.1.1.1, for=198.51.100.7;by=10.0.0.1", "198.51.100.7"),
            (
                "for=198.51.100.7;by=\"a,for=1.1.1.1\", for=10.2.0.1",
                "198.51.100.7",
            ),
            ("for=_hidden", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
        ] {
            let headers = headers("forwarded", &[line]);
            let found = found("10.0.0.1", AddressHeader::Forwarded, &headers);
            assert_eq!(found, client, "{line}");
        }
    }

    #[test]
    fn only_the_header_that_proxies_write_is_read() {
        let claimed = headers("forwarded", &["for=1.1.1.1"]);
        assert_eq!(
            found("10.0.0.1", AddressHeader::XForwardedFor, &claimed),
            "10.0.0.1"
        );
        let nobody = ClientAddress::new(&ProxyConfig::default());
        let claimed = headers("x-forwarded-for", &["1.1.1.1"]);
        let peer = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(nobody.of(Some(peer), &claimed), Some(peer));
        assert_eq!(nobody.of(None, &claimed), None);
    }

    fn headers_of(forwarded: &str) -> HeaderMap {
        headers("forwarded", &[forwarded])
    }

    proptest! {
        /// Whatever a client writes into the chain, the proxy's own word at its end decides.
        #[test]
        fn a_client_cannot_name_itself(claim in "[ -~]{0,60}") {
            let line = format!("{claim}, 198.51.100.7, 10.2.0.1");
            let headers = headers("x-forwarded-for", &[&claim, &line]);
            let found = found("10.0.0.1", AddressHeader::XForwardedFor, &headers);
            prop_assert_eq!(found, "198.51.100.7");
            let line = format!("for={claim}, for=198.51.100.7, for=10.2.0.1");
            let headers = headers_of(&line);
            // A quote left open swallows the rest, which then cannot be read; the proxy itself stands for it.
            let found = self::found("10.0.0.1", AddressHeader::Forwarded, &headers);
            prop_assert!(["198.51.100.7", "10.0.0.1", "10.2.0.1"].contains(&found.as_str()), "{}", found);
        }
    }
}
