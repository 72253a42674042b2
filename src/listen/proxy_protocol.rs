//! The PROXY protocol, versions 1 and 2: who is at the other end of a load balancer's connection.
//!
//! Read before TLS, and only from peers in `trusted_proxies`. Exactly the header's bytes are taken from the socket.
//! Source: haproxy, doc/proxy-protocol.txt.

use std::{io, net::SocketAddr};

use proxy_header::{ParseConfig, Protocol, ProxyHeader, Tlv};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// The longest version 1 header, line end included.
const V1_MAX: usize = 107;
/// The longest version 2 header that is read: addresses, and additions such as a certificate's name. The format allows 64 KiB.
const V2_MAX: usize = 4096;
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads one header. `None`: the proxy speaks for itself (`LOCAL`, `UNKNOWN`), a health check.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    let mut head = Vec::with_capacity(256);
    head.resize(V2_SIGNATURE.len(), 0);
    stream.read_exact(&mut head).await?;
    if head.starts_with(V2_SIGNATURE) {
        head.resize(16, 0);
        stream.read_exact(&mut head[12..]).await?;
        let len = 16 + usize::from(u16::from_be_bytes([head[14], head[15]]));
        if len > V2_MAX {
            return Err(invalid("the PROXY header is too long"));
        }
        head.resize(len, 0);
        stream.read_exact(&mut head[16..]).await?;
    } else if head.starts_with(b"PROXY ") {
        // A line has no length in front: look ahead, then take no more than the line.
        let mut ahead = [0; V1_MAX];
        while !head.ends_with(b"\r\n") {
            let room = V1_MAX - head.len();
            if room == 0 {
                return Err(invalid("the PROXY line does not end"));
            }
            let seen = stream.peek(&mut ahead[..room]).await?;
            if seen == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let take = memchr::memchr(b'\n', &ahead[..seen]).map_or(seen, |at| at + 1);
            stream.read_exact(&mut ahead[..take]).await?;
            head.extend_from_slice(&ahead[..take]);
            if head.last() == Some(&b'\n') && !head.ends_with(b"\r\n") {
                return Err(invalid("the PROXY line ends without a carriage return"));
            }
        }
    } else {
        return Err(invalid("no PROXY header"));
    }
    parse(&head)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Judges one whole header.
fn parse(head: &[u8]) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    let (header, len) = ProxyHeader::parse(head, ParseConfig::default()).map_err(|_| invalid("the PROXY header is malformed"))?;
    if len != head.len() {
        return Err(invalid("the PROXY header's length is wrong"));
    }
    // The parser checks additions only when asked.
    for tlv in header.tlvs() {
        match tlv {
            Ok(Tlv::Crc32c(sum)) if !crc32c_holds(head, sum) => return Err(invalid("the PROXY header's checksum does not match")),
            Ok(_) => {}
            Err(_) => return Err(invalid("a PROXY header addition is malformed")),
        }
    }
    let Some(address) = header.proxied_address() else { return Ok(None) };
    if address.protocol != Protocol::Stream {
        return Err(invalid("the PROXY header speaks of datagrams"));
    }
    if head.starts_with(b"PROXY ") && !plain_ports(head) {
        return Err(invalid("a port of the PROXY header is malformed"));
    }
    Ok(Some((address.source, address.destination)))
}

/// Ports are digits without a sign or leading zeros; the parser takes `+1` and `001`.
fn plain_ports(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    let plain = |port: &[u8]| port.iter().all(u8::is_ascii_digit) && (port.len() == 1 || !port.starts_with(b"0"));
    line.split(|byte| *byte == b' ').skip(4).all(plain)
}

/// CRC32C over the header with the sum's own four bytes as zeros (section 2.2.3); the sum's TLV is found by its place.
fn crc32c_holds(head: &[u8], sum: u32) -> bool {
    const KIND: u8 = 0x03;
    let Some(mut at) = head.get(13).map(|family| {
        16 + match family >> 4 {
            1 => 12,
            2 => 36,
            3 => 216,
            _ => 0,
        }
    }) else {
        return false;
    };
    while let Some([kind, high, low]) = head.get(at..at + 3) {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind == KIND && len == 4 && at + 7 <= head.len() {
            let parts = [&head[..at + 3], &[0; 4], &head[at + 7..]];
            return crc32c(parts.iter().flat_map(|part| part.iter())) == sum;
        }
        at += 3 + len;
    }
    false
}

/// Bit by bit: a header is short and most have no sum.
fn crc32c<'b>(bytes: impl Iterator<Item = &'b u8>) -> u32 {
    !bytes.fold(!0u32, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82F6_3B78 & (sum & 1).wrapping_neg())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut head = V2_SIGNATURE.to_vec();
        head.extend_from_slice(&[0x20 | command, family]);
        head.extend_from_slice(&u16::try_from(rest.len()).expect("a short header").to_be_bytes());
        head.extend_from_slice(rest);
        head
    }

    const INET: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0x30, 0x39, 0x01, 0xBB];

    fn check(head: &[u8], want: Result<Option<&str>, &str>) {
        let got = parse(head).map(|found| found.map(|(source, _)| source.to_string())).map_err(|why| why.to_string());
        assert_eq!(got, want.map(|found| found.map(str::to_owned)).map_err(str::to_owned), "{head:?}");
    }

    #[test]
    fn version_1() {
        check(b"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n", Ok(Some("192.0.2.1:12345")));
        check(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 443\r\n", Ok(Some("[2001:db8::1]:1")));
        check(b"PROXY UNKNOWN\r\n", Ok(None));
        check(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Ok(None));
        check(b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n", Err("a port of the PROXY header is malformed"));
        check(b"PROXY TCP4 192.0.2.1 198.51.100.2 1 0443\r\n", Err("a port of the PROXY header is malformed"));
        check(b"PROXY TCP4 192.0.2.256 198.51.100.2 1 443\r\n", Err("the PROXY header is malformed"));
        check(b"PROXY TCP4 2001:db8::1 198.51.100.2 1 443\r\n", Err("the PROXY header is malformed"));
        check(b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n", Err("the PROXY header is malformed"));
        check(b"PROXY UDP4 192.0.2.1 198.51.100.2 1 443\r\n", Err("the PROXY header is malformed"));
    }

    #[test]
    fn version_2() {
        check(&v2(1, 0x11, INET), Ok(Some("192.0.2.1:12345")));
        check(&v2(0, 0x00, b""), Ok(None));
        check(&v2(0, 0x11, INET), Ok(None));
        check(&v2(1, 0x12, INET), Err("the PROXY header speaks of datagrams"));
        check(&v2(1, 0x11, &INET[..8]), Err("the PROXY header is malformed"));
        check(&v2(1, 0x11, &[INET, &[0x04, 0, 1, 0]].concat()), Ok(Some("192.0.2.1:12345")));
        check(&v2(1, 0x11, &[INET, &[0x04, 0, 9, 0]].concat()), Err("a PROXY header addition is malformed"));
        check(&v2(1, 0x11, &[INET, &[0x04, 0]].concat()), Err("a PROXY header addition is malformed"));
    }

    #[test]
    fn checksums_are_checked() {
        assert_eq!(crc32c(b"123456789".iter()), 0xE306_9283, "the check value of RFC 3720's CRC");
        let mut head = v2(1, 0x11, &[INET, &[0x03, 0, 4, 0, 0, 0, 0]].concat());
        let sum = crc32c(head.iter());
        let end = head.len();
        head[end - 4..].copy_from_slice(&sum.to_be_bytes());
        check(&head, Ok(Some("192.0.2.1:12345")));
        head[16] ^= 1;
        check(&head, Err("the PROXY header's checksum does not match"));
    }
}
