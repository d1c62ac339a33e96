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
    /// What an earlier daemon kept counts as all there is, as it is now.
    RemovesBeforeSync,
    /// What others list is not looked at.
    IgnoresTheList,
    /// A node lists nobody.
    ListsNobody,
    /// A node goes back to an older key without having said so.
    GoesBackUnsaid,
    /// A node goes back to an older key by what its source has of its list, though it has said another since.
    GoesByTheSourceAlone,
    /// Packets that are on their way are not waited for.
    NoQuietTime,
    /// An old key goes as soon as nobody says that he sends by it: neither silence nor any time is waited for.
    DoesNotWait,
    /// A node gives a key up by which it still sends itself.
    IgnoresOwnWays,
    /// A node that has no newer key does not hold the old one.
    IgnoresWhoHasNotBegun,
    /// One key makes room for another of the same device, whoever still has its generation.
    NeverByWayOfTheOneBetween,
    /// An old key file is taken for a new one.
    UsesAnOldKeyAgain,
    /// Every list is told at once.
    TellsWithoutEnd,
}

impl Rules {
    /// Those that schedules find out within a hundred.
    pub const BROKEN: [Self; 7] = [
        Self::FlipsBeforeEvidence,
        Self::RetiresOnATimer,
        Self::ListsNobody,
        Self::IgnoresOwnWays,
        Self::NeverByWayOfTheOneBetween,
        Self::UsesAnOldKeyAgain,
        Self::TellsWithoutEnd,
    ];
}
