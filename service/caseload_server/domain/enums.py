"""Numbers of the contract's enumerations, as stored. A test compares them with the contract."""

from typing import Final

STATUS_ACTIVE: Final = 1
"""The status of an active therapist, and of an active patient."""
THERAPIST_INACTIVE: Final = 3
PATIENT_DISCHARGED: Final = 2

ROLE_PRIMARY: Final = 1
ROLE_TREATING: Final = 2
ROLE_COVERING: Final = 4
"""The last of the roles."""

STATE_ACTIVE: Final = 1
STATE_ENDED: Final = 2

END_TRANSFERRED: Final = 2
END_ENTERED_IN_ERROR: Final = 5
END_RECORD_DELETED: Final = 6
END_REPLACED: Final = 7
END_MERGED: Final = 8
END_EXPIRED: Final = 9

CHANGE_CREATED: Final = 1
CHANGE_UPDATED: Final = 2
CHANGE_DELETED: Final = 3
CHANGE_UNDELETED: Final = 4
CHANGE_PURGED: Final = 5
CHANGE_LOG_PURGED: Final = 6
CHANGE_VERSIONS_PURGED: Final = 7
