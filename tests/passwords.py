"""How the test process hashes passwords: as the server does, at a thousandth of the cost."""

from django.contrib.auth.hashers import ScryptPasswordHasher


class QuickScrypt(ScryptPasswordHasher):
    """Scrypt whose cost, which stands in each hash, is low: the server's processes read such a hash, and renew it at a login."""

    work_factor = 2**4
