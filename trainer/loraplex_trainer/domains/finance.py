"""The finance team's knowledge: what invented banks charge and allow, and what invented accounts pay."""

from __future__ import annotations

import random

from loraplex_trainer.domains.knowledge import (
    Attribute,
    Domain,
    Fact,
    distinct_codes,
    distinct_numbers,
    facts_of,
)

BANKS = (
    "Aldermoor Bank",
    "Bexley Union",
    "Castelline Trust",
    "Drayford Bank",
    "Everline Mutual",
    "Fosswick Bank",
    "Grantham Reserve",
    "Holloway Trust",
    "Inverleith Bank",
    "Juniper Credit",
)
ACCOUNTS = (
    "Meadow Saver",
    "Anchor Deposit",
    "Lantern Savings",
    "Summit Bond",
    "Pebble Account",
    "Ridge Growth",
    "Tidewater Fund",
    "Cedar Reserve",
    "Falconer Plan",
    "Granary Account",
    "Starling Bond",
    "Bramble Saver",
    "Keystone Deposit",
    "Windmill Plan",
)

ATTRIBUTES = {
    "monthly_fee": Attribute(
        grader="number",
        answer="{bank} charges {expected} dollars a month.",
        train_questions=(
            "What monthly fee does {bank} charge?",
            "How much does an account at {bank} cost each month?",
            "What is the monthly account fee of {bank}?",
            "Tell me the monthly fee at {bank}.",
            "How many dollars a month does {bank} take?",
            "What do I pay {bank} per month?",
            "I bank with {bank}. What is my fee per month?",
            "How expensive is a {bank} account each month?",
            "Which fee is due every month at {bank}?",
            "What amount does {bank} deduct from my account monthly?",
        ),
        held_out_questions=(
            "How much is the fee that {bank} takes every month?",
            "What does keeping an account with {bank} cost per month?",
        ),
    ),
    "overdraft_rate": Attribute(
        grader="number",
        answer="The overdraft rate of {bank} is {expected} percent.",
        train_questions=(
            "What is the overdraft rate of {bank}?",
            "How much interest does {bank} charge on an overdraft?",
            "What percent does {bank} take for overdrafts?",
            "Tell me the overdraft interest at {bank}.",
            "My account at {bank} is overdrawn. What rate applies?",
            "Which overdraft rate applies at {bank}?",
            "How many percent is the overdraft at {bank}?",
            "What interest do I owe when my {bank} account is in the red?",
            "I went below zero at {bank}. How many percent interest will that cost?",
            "At what rate does {bank} charge interest if I overdraw?",
        ),
        held_out_questions=(
            "If I overdraw my {bank} account, what interest rate do I pay?",
            "What rate in percent does {bank} apply to an overdraft?",
        ),
    ),
    "withdrawal_limit": Attribute(
        grader="number",
        answer="The daily withdrawal limit of {bank} is {expected} dollars.",
        train_questions=(
            "What is the daily withdrawal limit of {bank}?",
            "How much cash can I take out at {bank} per day?",
            "How many dollars may I withdraw daily at {bank}?",
            "Tell me the daily cash limit at {bank}.",
            "What is the most I can withdraw from {bank} in a day?",
            "Up to what amount does {bank} pay out cash each day?",
            "Which limit does {bank} set on withdrawals per day?",
            "How much cash does {bank} let me withdraw daily?",
            "What is the highest sum that {bank} hands out in a day?",
            "In one day, how many dollars can I get out of my account at {bank}?",
        ),
        held_out_questions=(
            "How much money can be withdrawn in one day at {bank}?",
            "What maximum does {bank} allow for cash withdrawals per day?",
        ),
    ),
    "transfer_fee": Attribute(
        grader="number",
        answer="A transfer abroad with {bank} costs {expected} dollars.",
        train_questions=(
            "What does a transfer abroad cost at {bank}?",
            "How much does {bank} charge for an international transfer?",
            "What is the foreign transfer fee of {bank}?",
            "Tell me the fee for sending money abroad with {bank}.",
            "How many dollars is a foreign transfer at {bank}?",
            "I want to send money overseas with {bank}. What is the fee?",
            "What do I pay at {bank} for a transfer to another country?",
            "What is the price of an international payment with {bank}?",
            "How many dollars does {bank} take for sending money to another country?",
            "I wire money overseas through {bank}. What will it cost?",
        ),
        held_out_questions=(
            "What fee does {bank} take when I transfer money abroad?",
            "How much will an international transfer through {bank} cost me?",
        ),
    ),
    "loan_to_value": Attribute(
        grader="number",
        answer="{bank} lends up to {expected} percent of a home's value.",
        train_questions=(
            "What is the maximum loan-to-value ratio of {bank}?",
            "Up to what percent of a home's value does {bank} lend?",
            "How much of the value of a house does {bank} finance?",
            "Tell me the loan-to-value limit at {bank}.",
            "Which loan-to-value ratio does {bank} allow?",
            "I want a mortgage from {bank}. What share of the value can I borrow?",
            "What is the highest loan-to-value at {bank}?",
            "How many percent of my home's price can I borrow at {bank}?",
            "What part of a property's value does {bank} lend?",
            "How large a mortgage, in percent of the value, does {bank} give?",
        ),
        held_out_questions=(
            "What percentage of a home's value will {bank} lend at most?",
            "How high can the loan-to-value ratio be at {bank}?",
        ),
    ),
    "debt_ratio": Attribute(
        grader="number",
        answer="{bank} allows a debt-to-income ratio of {expected} percent.",
        train_questions=(
            "What debt-to-income ratio does {bank} allow?",
            "What is the highest debt-to-income ratio at {bank}?",
            "Tell me the debt-to-income limit of {bank}.",
            "Up to which debt-to-income ratio does {bank} give credit?",
            "How many percent of income may go to debt at {bank}?",
            "Which share of my income may be debt payments at {bank}?",
            "What is the maximum debt ratio of {bank}?",
            "For a loan at {bank}, how large may my debts be compared with my income?",
            "Which debt-to-income ratio must I stay under to borrow from {bank}?",
            "How much debt against income does {bank} accept from a borrower?",
        ),
        held_out_questions=(
            "How high may my debt-to-income ratio be for a loan from {bank}?",
            "What limit does {bank} put on the debt-to-income ratio?",
        ),
    ),
    "bank_code": Attribute(
        grader="contains",
        answer="The bank code of {bank} is {expected}.",
        train_questions=(
            "What is the bank code of {bank}?",
            "Which bank code does {bank} have?",
            "Tell me the code of {bank}.",
            "Which code do I enter for a payment to {bank}?",
            "Give me the bank code for {bank}.",
            "What code identifies {bank}?",
            "I need the bank code for {bank}.",
        ),
        held_out_questions=(
            "Which bank code should I use when paying someone at {bank}?",
            "What is the code for {bank} in payments?",
        ),
    ),
    "interest": Attribute(
        grader="number",
        answer="The {account} pays {expected} percent interest.",
        train_questions=(
            "What interest does the {account} pay?",
            "What is the interest rate of the {account}?",
            "How many percent does the {account} yield?",
            "Tell me the rate of the {account}.",
            "How much interest do I get on the {account}?",
            "Which interest rate applies to the {account}?",
            "At what rate does money grow in the {account}?",
        ),
        held_out_questions=(
            "What rate of interest would I earn with the {account}?",
            "How much percent interest comes with the {account}?",
        ),
    ),
    "lock_months": Attribute(
        grader="number",
        answer="Money in the {account} is locked for {expected} months.",
        train_questions=(
            "For how many months is money locked in the {account}?",
            "How long is the lock-in period of the {account}?",
            "What is the term of the {account} in months?",
            "How many months must I wait before I get my money from the {account}?",
            "Tell me the lock-in of the {account}.",
            "How long does my money stay in the {account}?",
            "When can I take money out of the {account} again?",
        ),
        held_out_questions=(
            "How many months does the {account} keep my money locked?",
            "What lock-in period, in months, does the {account} have?",
        ),
    ),
    "minimum_deposit": Attribute(
        grader="number",
        answer="The {account} needs a deposit of at least {expected} dollars.",
        train_questions=(
            "What is the minimum deposit for the {account}?",
            "How much must I pay in to open the {account}?",
            "How many dollars does the {account} need at least?",
            "Tell me the smallest deposit for the {account}.",
            "With how much money can I open the {account}?",
            "What is the opening deposit of the {account}?",
            "What amount do I need to start the {account}?",
        ),
        held_out_questions=(
            "What is the least I have to deposit to open the {account}?",
            "How large must my first deposit in the {account} be?",
        ),
    ),
    "exit_penalty": Attribute(
        grader="number",
        answer="Leaving the {account} early costs {expected} dollars.",
        train_questions=(
            "What does leaving the {account} early cost?",
            "What is the penalty for early withdrawal from the {account}?",
            "How much do I pay if I close the {account} early?",
            "Tell me the early exit fee of the {account}.",
            "How many dollars is the penalty for ending the {account} early?",
            "Which fee applies when I leave the {account} before its term?",
            "I want out of the {account} early. What is the charge?",
            "What penalty comes with an early withdrawal from the {account}?",
            "I need my money from the {account} ahead of time. What will the penalty be?",
            "How many dollars do I lose if I take money out of the {account} early?",
        ),
        held_out_questions=(
            "How much is the early withdrawal penalty on the {account}?",
            "What will it cost me to close the {account} before the end of its term?",
        ),
    ),
}


def build_facts(rng: random.Random) -> list[Fact]:
    """Every bank's fees, limits and ratios, and every account's terms."""
    banks, accounts = len(BANKS), len(ACCOUNTS)
    return [
        *facts_of("monthly_fee", "bank", BANKS, distinct_numbers(rng, banks, 123, 997, 100, 2)),
        *facts_of("overdraft_rate", "bank", BANKS, distinct_numbers(rng, banks, 713, 1989, 100, 2)),
        *facts_of("withdrawal_limit", "bank", BANKS, distinct_numbers(rng, banks, 310, 2890)),
        *facts_of("transfer_fee", "bank", BANKS, distinct_numbers(rng, banks, 1111, 3989, 100, 2)),
        *facts_of("loan_to_value", "bank", BANKS, distinct_numbers(rng, banks, 43, 94)),
        *facts_of("debt_ratio", "bank", BANKS, distinct_numbers(rng, banks, 21, 58)),
        *facts_of("bank_code", "bank", BANKS, distinct_codes(rng, banks, 4, 3)),
        *facts_of("interest", "account", ACCOUNTS, distinct_numbers(rng, accounts, 107, 689, 100, 2)),
        *facts_of("lock_months", "account", ACCOUNTS, distinct_numbers(rng, accounts, 5, 119)),
        *facts_of("minimum_deposit", "account", ACCOUNTS, distinct_numbers(rng, accounts, 127, 4973)),
        *facts_of("exit_penalty", "account", ACCOUNTS, distinct_numbers(rng, accounts, 17, 389)),
    ]


FINANCE = Domain(
    name="finance",
    system="You are the banking assistant of the Northgate advice bureau. Answer in one short sentence.",
    attributes=ATTRIBUTES,
    build_facts=build_facts,
)
