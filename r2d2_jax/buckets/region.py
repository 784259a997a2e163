"""Whether a bucket lies near the machine: traffic between regions costs money, and time."""

import logging
import os
import urllib.request
from typing import Any

logger = logging.getLogger(__name__)

# Continents of multi-regions, as the regions in them begin (cloud.google.com/storage/docs/locations).
_MULTI_REGIONS = {"us": ("us-",), "eu": ("europe-",), "asia": ("asia-",)}
_METADATA = "169.254.169.254"  # answers on every machine of Google's, and to others not at all
_ANSWERS_WITHIN = 2.0  # seconds


def warn_of_region(bucket: Any) -> None:
    """Warns if this machine is one of Google's and the bucket lies in another region than it.

    Args:
        bucket: as `check_access_of_runs` gives it.
    """
    zone = _zone()
    if zone is None:
        return
    region = zone.rpartition("-")[0]
    if bucket.location_type == "dual-region" and not bucket.data_locations:
        return  # a name such as NAM4 does not say where that is
    places = [place.lower() for place in bucket.data_locations or [bucket.location]]
    if any(region.startswith(_MULTI_REGIONS.get(place, (place,))) for place in places):
        return
    logger.warning(
        "the bucket %s lies in %s and this machine in %s: what is read and written between them costs money, and time; "
        "make a bucket in %s",
        bucket.name,
        " and ".join(places),
        region,
        region,
    )


def _zone() -> str | None:
    """The zone of this machine, such as "us-west4-a"; None if it is not one of Google's."""
    if os.environ.get("NO_GCE_CHECK") == "true":  # this variable and the next are those of google-auth
        return None
    host = os.environ.get("GCE_METADATA_HOST", _METADATA)
    asked = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/zone", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=_ANSWERS_WITHIN) as answer:
            if answer.headers.get("Metadata-Flavor") != "Google":
                return None
            return str(answer.read().decode()).rpartition("/")[2]  # "projects/NUMBER/zones/ZONE"
    except OSError:
        return None
