//! A set of addresses as prefixes, and how lists of them stand in files. Pure.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixSet;

/// A set of addresses as prefixes, looked up by longest match. IPv4 and IPv4-mapped IPv6 are the same address.
#[derive(Clone, Debug, Default)]
pub(crate) struct IpSet {
    v4: PrefixSet<Ipv4Net>,
    v6: PrefixSet<Ipv6Net>,
}

impl IpSet {
    pub(crate) fn insert(&mut self, net: IpNet) {
        match fold(net) {
            IpNet::V4(v4) => self.v4.insert(v4.trunc()),
            IpNet::V6(v6) => self.v6.insert(v6.trunc()),
        };
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(v4) => self.v4.get_lpm(&Ipv4Net::from(v4)).is_some(),
            IpAddr::V6(v6) => self.v6.get_lpm(&Ipv6Net::from(v6)).is_some(),
        }
    }
}

impl FromIterator<IpNet> for IpSet {
    fn from_iter<T: IntoIterator<Item = IpNet>>(nets: T) -> Self {
        let mut set = Self::default();
        nets.into_iter().for_each(|net| set.insert(net));
        set
    }
}

/// A prefix inside `::ffff:0:0/96` as the IPv4 prefix it means.
fn fold(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Ok(folded) = Ipv4Net::new(v4, v6.prefix_len() - 96)
    {
        return IpNet::V4(folded);
    }
    net
}

/// A list of networks in a file: each as text.
pub(super) mod texts {
    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in super::super) fn serialize<S: Serializer>(nets: &[IpNet], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(nets.iter().map(ToString::to_string))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| text.parse().map_err(|_| D::Error::custom(format!("`{text}` is not a network")))).collect()
    }
}
