# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What module ufw knows: rules as people and ufw write them, the kernel's side, SSH, the guard."""
