"""The sections of an examination, in order. A new section is one more line here."""

from launch.doctor import cuda, disk, leftovers, machine, software
from launch.doctor.finding import Section

SECTIONS: tuple[Section, ...] = (
    software.findings,
    machine.findings,
    disk.findings,
    cuda.findings,
    leftovers.findings,
)
