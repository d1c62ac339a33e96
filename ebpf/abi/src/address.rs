/// An address as it stands in a packet: four words in network order, IPv4 as `::ffff:a.b.c.d`.
///
/// Words and not bytes: the BPF backend zeroes a `[u8; 16]` by a call of a byte-wise memset.
pub type Address = [u32; 4];

/// The [`Address`] of an IPv4 address that is given as it stands in a header (network order).
#[inline(always)]
pub const fn v4(network_order: u32) -> Address {
    [0, 0, 0xffff_u32.to_be(), network_order]
}

/// Whether it is an IPv4 address in the form of an IPv6 one (RFC 4291, section 2.5.5.2). No header of IPv6 holds one that is rightly there.
#[inline(always)]
pub const fn is_v4_mapped(address: &Address) -> bool {
    let [a, b, c, _] = *address;
    a | b | c ^ 0xffff_u32.to_be() == 0
}

/// Prefix length, in bits, of an IPv4 prefix of `length` bits among mapped addresses.
#[inline(always)]
pub const fn v4_mapped_length(length: u8) -> u32 {
    96 + length as u32
}
