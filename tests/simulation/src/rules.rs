//! What the simulated nodes go by: the production functions, or one of them broken on purpose.

/// How the protocol is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rules {
    /// As it is.
    Ours,
    /// Packets move to a new device that nobody has answered on yet.
    FlipsBeforeEvidence,
    /// An old key goes a while after the new one was made.
    RetiresOnATimer,
    /// What an earlier daemon kept counts as all there is, as it is now. Found out by a schedule laid down by hand (`directed.rs`).
    RemovesBeforeSync,
    /// What others list is not looked at. Found out by the model.
    IgnoresTheList,
    /// A node lists nobody.
    ListsNobody,
    /// A node goes back to an older key without having said so. Found out by the model.
    GoesBackUnsaid,
    /// A node goes back to an older key by what its source has of its list, though it has said another since. Found out by the model.
    GoesByTheSourceAlone,
    /// The devices' silence is not waited for. That is not needed, as long as everybody keeps to the protocol: five seconds from
    /// when the last node said that it moved are waited for as well, and the model, in which it is always silent, holds. It is
    /// for what the protocol does not see, such as a peer that sends what it has said it would not.
    NoQuietTime,
    /// An old key goes as soon as nobody says that he sends by it: neither silence nor any time is waited for. Found out by the
    /// model.
    DoesNotWait,
    /// A node gives a key up by which it still sends itself.
    IgnoresOwnWays,
    /// A node that has no newer key does not hold the old one. That is not needed, as the model shows: to such a node we send by the
    /// old key ourselves, and that holds it. It is for one that we can't send to yet.
    IgnoresWhoHasNotBegun,
    /// One key makes room for another of the same device, whoever still has its generation.
    NeverByWayOfTheOneBetween,
    /// An old key file is taken for a new one.
    UsesAnOldKeyAgain,
    /// Every list is told at once.
    TellsWithoutEnd,
    /// A node that keeps its key makes the next generation of it while the device of the one before stands: that goes by the same name and
    /// has the same key, so its sessions pass for proof.
    TakesADeviceOver,
    /// What a source tells counts, though it be older than what was kept.
    BelievesThePast,
    /// Packets to a node whose tunnel is not proven go in plain, though encryption is required and the mesh is not being adopted.
    OpensWhileUnproven,
    /// A daemon that begins anew goes by the mode that is on disk, though a stricter one stands in the kernel. Found out by a schedule laid down
    /// by hand.
    LoosensByTheDisk,
    /// A daemon that begins anew does not know which pairs adoption has closed.
    ForgetsWhoWasClosed,
}

impl Rules {
    /// Those that schedules find out within a few hundred; the model and schedules laid down by hand find out others (see there).
    pub const BROKEN: [Self; 11] = [
        Self::FlipsBeforeEvidence,
        Self::RetiresOnATimer,
        Self::ListsNobody,
        Self::IgnoresOwnWays,
        Self::NeverByWayOfTheOneBetween,
        Self::UsesAnOldKeyAgain,
        Self::TellsWithoutEnd,
        Self::TakesADeviceOver,
        Self::BelievesThePast,
        Self::OpensWhileUnproven,
        Self::ForgetsWhoWasClosed,
    ];
}
