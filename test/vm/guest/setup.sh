# Run in the new root directory once: what a guest is before its first boot. It boots to be asked one thing, so what
# costs an emulated machine seconds and tells nothing of crid is left out: logins, timers, Debian's hundred AppArmor
# profiles (the kernel enforces AppArmor all the same, and crid brings its own).
rm /setup.sh
passwd -d root >/dev/null
echo node >/etc/hostname
echo '127.0.0.1 localhost node' >/etc/hosts
echo '::1 localhost' >>/etc/hosts
mkdir /crid-test
systemctl mask -q apparmor.service getty@tty1.service serial-getty@ttyS0.service console-getty.service \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service \
	systemd-hwdb-update.service systemd-timesyncd.service systemd-networkd.service systemd-networkd-wait-online.service \
	systemd-firstboot.service systemd-journal-flush.service systemd-journal-catalog-update.service \
	systemd-random-seed.service systemd-update-done.service systemd-logind.service systemd-user-sessions.service tmp.mount
mkdir /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\n' >/etc/systemd/journald.conf.d/volatile.conf
systemctl set-default -q multi-user.target
systemctl enable -q crid-test.service
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /usr/share/doc /usr/share/locale /usr/share/man /boot/initrd.img-*
if [ -d /etc/selinux/default ]; then # files have no labels, which a permissive machine can do without
	printf 'SELINUX=permissive\nSELINUXTYPE=default\n' >/etc/selinux/config
fi
