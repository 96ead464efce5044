"""The tools of the clinic domain: patients, doctors and slots to read, a user to ask, one write: to book."""

from envs.tools import Param, Tool, Write
from synthesis.scripted_user import ask_user
from synthesis.surface import AFTER, SURFACES, Surface, exists, page_of

SPECIALTIES = ("cardiology", "dermatology", "neurology", "orthopaedics")
LABORATORY = "laboratory"
TOPICS = ("day", "doctor", "time")
FREE = "free"
"""Stands for a patient's id in a slot that nobody has."""
_SPECIALTY = Param(name="specialty", description="The field.", enum=(*SPECIALTIES, LABORATORY))
_DOCTOR = Param(name="doctor", description="The doctor's last name.")
_SLOT = Param(name="slot", description="The slot's id.")
_PATIENT = Param(name="patient_id", description="The patient's id.")


def _finding(surface: Surface) -> tuple[Tool, ...]:
    """How free slots are found: what the granularity changes."""
    if surface.search:
        return (
            Tool(
                name="search_slots",
                description="The free slots of a field, with doctor, day and hour.",
                parameters=(_SPECIALTY,),
                query="SELECT s.slot, s.doctor, s.day, s.starts FROM slots s "
                f"JOIN doctors d ON d.doctor = s.doctor WHERE d.specialty = :specialty "
                f"AND s.patient_id = '{FREE}' ORDER BY s.slot",
                row_format="{slot}: Dr {doctor}, {day} {starts}",
                reads=("doctors", "slots"),
            ),
        )
    return (
        Tool(
            name="list_doctors",
            description="The last names of the doctors of a field.",
            parameters=(_SPECIALTY,),
            query="SELECT doctor FROM doctors WHERE specialty = :specialty ORDER BY doctor",
            row_format="{doctor}",
            reads=("doctors",),
        ),
        Tool(
            name="list_slots",
            description="The ids of a doctor's free slots.",
            parameters=(_DOCTOR, AFTER),
            requires=(exists(surface, "doctor", "doctors", "doctor"),),
            query=page_of("slots", "slot", f"doctor = :doctor AND patient_id = '{FREE}'"),
            row_format="{slot}",
            reads=("doctors", "slots"),
        ),
    )


def _toolset(surface: Surface) -> tuple[Tool, ...]:
    slot = exists(surface, "slot", "slots", "slot")
    patient = exists(surface, "patient", "patients", "patient_id")
    return (
        Tool(
            name="find_patient_id",
            description="The id of the patient with this name.",
            parameters=(Param(name="name", description="First and last name."),),
            query="SELECT patient_id FROM patients WHERE name = :name",
            row_format="{patient_id}",
            reads=("patients",),
        ),
        Tool(
            name="get_patient",
            description="Name, priority and the hours between which a patient can come.",
            parameters=(_PATIENT,),
            requires=(patient,),
            query="SELECT name, priority, earliest, latest FROM patients WHERE patient_id = :patient_id",
            row_format=f"{{name}}; {surface.word('priority', 'urgency')} {{priority}}; "
            "can come from {earliest} to {latest}",
            reads=("patients",),
        ),
        *_finding(surface),
        Tool(
            name="get_slot",
            description="Doctor, day, hour and state of a slot.",
            parameters=(_SLOT,),
            requires=(slot,),
            query="SELECT doctor, day, starts, CASE patient_id WHEN 'free' THEN 'free' ELSE 'taken' END "
            "AS state FROM slots WHERE slot = :slot",
            row_format=f"Dr {{doctor}}; {surface.word('on', 'date')} {{day}} at {{starts}}; {{state}}",
            reads=("slots",),
        ),
        Tool(
            name="get_doctor",
            description="Field and room of a doctor.",
            parameters=(_DOCTOR,),
            requires=(exists(surface, "doctor", "doctors", "doctor"),),
            query="SELECT specialty, room FROM doctors WHERE doctor = :doctor",
            row_format="{specialty}; room {room}",
            reads=("doctors",),
        ),
        ask_user(TOPICS),
        Tool(
            name="book_slot",
            description="Books a slot for a patient, whoever had it.",
            parameters=(_SLOT, _PATIENT),
            requires=(slot, patient),
            statements=("UPDATE slots SET patient_id = :patient_id WHERE slot = :slot",),
            done="booked",
            reads=("patients", "slots"),
            writes=(Write(table="slots", operation="update", columns=("patient_id",)),),
        ),
    )


TOOLSETS = tuple(_toolset(surface) for surface in SURFACES)
